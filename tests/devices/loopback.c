/* Keeps a server that binds every address on the loopback interface, and off vsock, which no network namespace holds.
   For tests only: cc -shared -fPIC -o loopback.so loopback.c -ldl, then LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

int socket(int domain, int type, int protocol)
{
    int (*real)(int, int, int) = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
    if (domain == AF_VSOCK) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    return real(domain, type, protocol);
}

int bind(int descriptor, const struct sockaddr *address, socklen_t length)
{
    int (*real)(int, const struct sockaddr *, socklen_t) =
        (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind");
    struct sockaddr_storage local;
    if (length > sizeof local) {
        errno = EINVAL;
        return -1;
    }
    memcpy(&local, address, length);
    if (address->sa_family == AF_VSOCK) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    if (address->sa_family == AF_INET)
        ((struct sockaddr_in *)&local)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (address->sa_family == AF_INET6) /* ::ffff:127.0.0.1: IPv4's loopback, for a socket that serves both */
        memcpy(&((struct sockaddr_in6 *)&local)->sin6_addr, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\1", 16);
    return real(descriptor, (struct sockaddr *)&local, length);
}
