/* What a kernel can do to a data plane, on demand: loaded with LD_PRELOAD between the process and the kernel.
 *
 * The file that DSVPN_FAULTS names is shared with the test, which writes what shall fail and reads what happened; see
 * faults.py for the fields. A call that no fault is for goes to the kernel as it came.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define UDP_SEGMENT 103
#define SOL_UDP 17
#define DESCRIPTORS 1024
#define RECORDS (1u << 20)

struct record {
    uint32_t spi, sequence;
    uint64_t hash;
};

struct faults {
    uint32_t gso_errno, gso_left;     /* messages with UDP_SEGMENT fail, so many times */
    uint32_t send_errno, send_left;   /* any message fails, so many times */
    uint32_t tun_kinds, tun_refused;  /* bits of gso_type that a TUN refuses with EINVAL; how many it has refused */
    uint32_t offloads;                /* bits of TUNSETOFFLOAD that are refused */
    uint32_t mangle_tail;             /* a message whose last segment is full-sized arrives damaged */
    uint32_t lie;                     /* 1: a read from a TUN, 2: recvmmsg, says that it gave more than there was room */
    uint32_t swap;                    /* every so manieth message of several segments leaves with two of them swapped */
    uint32_t one_queue;               /* errno with which a TUN with several queues is refused */
    uint32_t no_steering;             /* errno with which a filter for sockets that share a port is refused */
    uint32_t recording, records;      /* whether sends are recorded; how many were */
    struct record record[RECORDS];
};

static struct faults *faults;
static unsigned char is_tun[DESCRIPTORS];
static uint32_t runs;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("DSVPN_FAULTS");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        abort();
    faults = mmap(NULL, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (faults == MAP_FAILED)
        abort();
    close(file);
}

static uint32_t get(const uint32_t *field)
{
    return __atomic_load_n(field, __ATOMIC_SEQ_CST);
}

/* Whether one of `left` faults is to happen. */
static int take(uint32_t *left)
{
    uint32_t now = get(left);
    while (now != 0)
        if (now == UINT32_MAX || __atomic_compare_exchange_n(left, &now, now - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return 1;
    return 0;
}

static size_t segment_size(const struct msghdr *message)
{
    for (struct cmsghdr *one = CMSG_FIRSTHDR(message); one; one = CMSG_NXTHDR((struct msghdr *)message, one))
        if (one->cmsg_level == SOL_UDP && one->cmsg_type == UDP_SEGMENT) {
            uint16_t size;
            memcpy(&size, CMSG_DATA(one), sizeof size);
            return size;
        }
    return 0;
}

static void record(const struct msghdr *message)
{
    const unsigned char *octets = message->msg_iov[0].iov_base;
    size_t length = message->msg_iov[0].iov_len, size = segment_size(message);
    for (size_t at = 0; at < length; at += size ? size : length) {
        size_t end = size && at + size < length ? at + size : length;
        uint64_t hash = 14695981039346656037u;
        uint32_t words[2];
        if (end - at < 16)
            continue;
        memcpy(words, octets + at, sizeof words);
        for (size_t index = at; index < end; index++)
            hash = (hash ^ octets[index]) * 1099511628211u;
        uint32_t place = __atomic_fetch_add(&faults->records, 1, __ATOMIC_SEQ_CST);
        if (place < RECORDS)
            faults->record[place] = (struct record){ntohl(words[0]), ntohl(words[1]), hash};
    }
}

static int changed(const struct msghdr *message)
{
    size_t length = message->msg_iov[0].iov_len, size = segment_size(message);
    if (size == 0 || length < 2 * size)
        return 0;
    if (get(&faults->mangle_tail) && length % size == 0)
        return 1;
    uint32_t every = get(&faults->swap);
    return every && __atomic_add_fetch(&runs, 1, __ATOMIC_SEQ_CST) % every == 0 ? 2 : 0;
}

static int send_changed(int descriptor, const struct mmsghdr *original, int flags, int how)
{
    static _Thread_local unsigned char copy[65536];
    struct mmsghdr header = *original;
    size_t length = header.msg_hdr.msg_iov[0].iov_len, size = segment_size(&header.msg_hdr);
    struct iovec vector = {copy, length};
    memcpy(copy, header.msg_hdr.msg_iov[0].iov_base, length);
    if (how == 1) {
        copy[length - 1] ^= 0xff;
    } else {
        memcpy(copy, (char *)header.msg_hdr.msg_iov[0].iov_base + size, size);
        memcpy(copy + size, header.msg_hdr.msg_iov[0].iov_base, size);
    }
    header.msg_hdr.msg_iov = &vector;
    return syscall(SYS_sendmmsg, descriptor, &header, 1, flags);
}

int sendmmsg(int descriptor, struct mmsghdr *messages, unsigned int count, int flags)
{
    unsigned int whole = 0;
    int failure = 0, how = 0;
    for (; whole < count; whole++) {
        struct msghdr *message = &messages[whole].msg_hdr;
        if (whole == 0) {
            if (get(&faults->recording))
                record(message);
            if (segment_size(message) && get(&faults->gso_errno) && take(&faults->gso_left))
                failure = get(&faults->gso_errno);
            else if (get(&faults->send_errno) && take(&faults->send_left))
                failure = get(&faults->send_errno);
            else
                how = changed(message);
            if (failure || how)
                break;
        } else if (get(&faults->gso_left) || get(&faults->send_left) || get(&faults->mangle_tail) ||
                   get(&faults->swap) || get(&faults->recording)) {
            break; /* each message by itself, as the kernel may do it too */
        }
    }
    if (failure) {
        errno = failure;
        return -1;
    }
    if (how)
        return send_changed(descriptor, messages, flags, how);
    return syscall(SYS_sendmmsg, descriptor, messages, whole, flags);
}

int recvmmsg(int descriptor, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout)
{
    int result = syscall(SYS_recvmmsg, descriptor, messages, count, flags, timeout);
    return result > 0 && get(&faults->lie) == 2 ? 1 << 20 : result;
}

int setsockopt(int descriptor, int level, int option, const void *value, socklen_t length)
{
    if (level == SOL_SOCKET && option == SO_ATTACH_REUSEPORT_CBPF && get(&faults->no_steering)) {
        errno = get(&faults->no_steering);
        return -1;
    }
    return syscall(SYS_setsockopt, descriptor, level, option, value, length);
}

static int of_tun(int descriptor)
{
    return descriptor >= 0 && descriptor < DESCRIPTORS && is_tun[descriptor];
}

ssize_t read(int descriptor, void *buffer, size_t count)
{
    ssize_t result = syscall(SYS_read, descriptor, buffer, count);
    return result > 0 && of_tun(descriptor) && get(&faults->lie) == 1 ? 1 << 30 : result;
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    if (of_tun(descriptor) && count > 0 && parts[0].iov_len > 1) {
        unsigned char kind = ((unsigned char *)parts[0].iov_base)[1] & 0x7f;
        if (kind != 0 && get(&faults->tun_kinds) >> kind & 1) {
            __atomic_add_fetch(&faults->tun_refused, 1, __ATOMIC_SEQ_CST);
            errno = EINVAL;
            return -1;
        }
    }
    return syscall(SYS_writev, descriptor, parts, count);
}

int ioctl(int descriptor, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    unsigned long argument = va_arg(arguments, unsigned long);
    va_end(arguments);
    if ((uint32_t)request == TUNSETOFFLOAD && argument & get(&faults->offloads)) {
        errno = EINVAL;
        return -1;
    }
    if ((uint32_t)request == TUNSETIFF && ((struct ifreq *)argument)->ifr_flags & IFF_MULTI_QUEUE &&
        get(&faults->one_queue)) {
        errno = get(&faults->one_queue);
        return -1;
    }
    int result = syscall(SYS_ioctl, descriptor, request, argument);
    if ((uint32_t)request == TUNSETIFF && result == 0 && descriptor < DESCRIPTORS)
        is_tun[descriptor] = 1;
    return result;
}
