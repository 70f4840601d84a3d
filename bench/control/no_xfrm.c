/* Preloaded into charon on a machine whose kernel has no IPsec: stands for NETLINK_XFRM and says yes to everything.
 *
 * charon then does all that it does before its kernel interface, messages to the kernel included, and nothing after it:
 * what is measured is its IKE. Its plugin kernel-netlink asks for an SPI (XFRM_MSG_ALLOCSPI) and gets one that counts
 * up; every other request is acknowledged. Linked without libraries but the C library's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 4096

static int far_end[MOST];
static unsigned int last_spi = 0xc0000000;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int is_ours(int fd)
{
	return fd >= 0 && fd < MOST && far_end[fd];
}

int socket(int domain, int type, int protocol)
{
	static int (*real)(int, int, int);
	int pair[2];

	if (!real)
		real = dlsym(RTLD_NEXT, "socket");
	if (domain != AF_NETLINK || protocol != NETLINK_XFRM)
		return real(domain, type, protocol);
	if (socketpair(AF_UNIX, SOCK_DGRAM | (type & SOCK_CLOEXEC), 0, pair))
		return -1;
	if (pair[0] >= MOST) {
		close(pair[0]);
		close(pair[1]);
		errno = EMFILE;
		return -1;
	}
	far_end[pair[0]] = pair[1];
	return pair[0];
}

/* charon closes some of these sockets at once, and its next socket gets the same number. */
int close(int fd)
{
	static int (*real)(int);

	if (!real)
		real = dlsym(RTLD_NEXT, "close");
	if (is_ours(fd)) {
		real(far_end[fd]);
		far_end[fd] = 0;
	}
	return real(fd);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
	static int (*real)(int, const struct sockaddr *, socklen_t);

	if (!real)
		real = dlsym(RTLD_NEXT, "bind");
	return is_ours(fd) ? 0 : real(fd, address, length);
}

static void answer(int fd, const struct nlmsghdr *request)
{
	struct {
		struct nlmsghdr head;
		union {
			struct nlmsgerr error;
			struct xfrm_usersa_info sa;
		};
	} reply;

	memset(&reply, 0, sizeof(reply));
	reply.head.nlmsg_seq = request->nlmsg_seq;
	reply.head.nlmsg_pid = request->nlmsg_pid;
	if (request->nlmsg_type == XFRM_MSG_ALLOCSPI) {
		const struct xfrm_userspi_info *wanted = NLMSG_DATA(request);

		reply.head.nlmsg_type = XFRM_MSG_NEWSA;
		reply.head.nlmsg_len = NLMSG_LENGTH(sizeof(reply.sa));
		reply.sa = wanted->info;
		pthread_mutex_lock(&lock);
		last_spi++;
		reply.sa.id.spi = __builtin_bswap32(last_spi);
		pthread_mutex_unlock(&lock);
	} else {
		reply.head.nlmsg_type = NLMSG_ERROR;
		reply.head.nlmsg_len = NLMSG_LENGTH(sizeof(reply.error));
		reply.error.msg = *request;
	}
	send(far_end[fd], &reply, reply.head.nlmsg_len, 0);
}

ssize_t sendto(int fd, const void *data, size_t length, int flags, const struct sockaddr *to, socklen_t size)
{
	static ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);

	if (!real)
		real = dlsym(RTLD_NEXT, "sendto");
	if (!is_ours(fd))
		return real(fd, data, length, flags, to, size);
	for (const struct nlmsghdr *one = data; (const char *)one < (const char *)data + length;
	     one = (const void *)((const char *)one + NLMSG_ALIGN(one->nlmsg_len))) {
		if (one->nlmsg_len < sizeof(*one))
			break;
		answer(fd, one);
	}
	return length;
}
