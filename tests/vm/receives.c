/* Waits for one packet, and says whether it came: receives KIND INTERFACE SECONDS, see below for the kinds. */
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

static int fail(const char *what) { perror(what); exit(1); }

static int group4(unsigned index) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(5004)};
    struct ip_mreqn group = {.imr_ifindex = index};
    inet_pton(AF_INET, "239.1.2.3", &group.imr_multiaddr);
    if (bind(fd, (void *)&here, sizeof here) || setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group))
        fail("group4");
    return fd;
}

static int group6(unsigned index) {
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_port = htons(5006)};
    struct ipv6_mreq group = {.ipv6mr_interface = index};
    inet_pton(AF_INET6, "ff15::1:2:3", &group.ipv6mr_multiaddr);
    if (bind(fd, (void *)&here, sizeof here) || setsockopt(fd, IPPROTO_IPV6, IPV6_JOIN_GROUP, &group, sizeof group))
        fail("group6");
    return fd;
}

/* Frames of a protocol that nobody knows; with membership -1 those that come by themselves. */
static int frames(unsigned index, int membership) {
    int fd = socket(AF_PACKET, SOCK_RAW, htons(0x88b5));
    struct sockaddr_ll here = {.sll_family = AF_PACKET, .sll_protocol = htons(0x88b5), .sll_ifindex = index};
    struct packet_mreq mreq = {.mr_ifindex = index, .mr_type = membership};
    if (bind(fd, (void *)&here, sizeof here)) fail("bind");
    if (membership >= 0 && setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &mreq, sizeof mreq)) fail("membership");
    return fd;
}

int main(int argc, char **argv) {
    char buffer[2048];
    unsigned index = argc == 4 ? if_nametoindex(argv[2]) : 0;
    int fd = -1;
    if (!index) fail("interface");
    if (!strcmp(argv[1], "group4")) fd = group4(index);
    if (!strcmp(argv[1], "group6")) fd = group6(index);
    if (!strcmp(argv[1], "frames")) fd = frames(index, -1);
    if (!strcmp(argv[1], "allmulti")) fd = frames(index, PACKET_MR_ALLMULTI);
    if (!strcmp(argv[1], "promisc")) fd = frames(index, PACKET_MR_PROMISC);
    struct timeval patience = {.tv_sec = atoi(argv[3])};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    printf("%s on %s: %s\n", argv[1], argv[2], recv(fd, buffer, sizeof buffer, 0) > 0 ? "received" : "nothing");
    return 0;
}
