/*
 * sd_notify(3) as a program of a container has it: sends each argument to NOTIFY_SOCKET, one datagram each. "barrier"
 * waits until everything before it was received (sd_notify_barrier(3)).
 *
 * notify TEXT...
 */
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static int barrier(int fd)
{
	int ends[2];
	char text[] = "BARRIER=1";
	struct iovec part = { text, strlen(text) };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	struct pollfd waiting;

	if (pipe(ends))
		return fail("pipe");
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.header), &ends[1], sizeof(int));
	if (sendmsg(fd, &message, 0) < 0)
		return fail("sendmsg");
	close(ends[1]);
	waiting = (struct pollfd){ .fd = ends[0] };
	if (poll(&waiting, 1, 60000) != 1)
		return fail("poll");
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const char *path = getenv("NOTIFY_SOCKET");
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

	if (fd < 0 || !path)
		return fail("socket");
	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return fail(path);
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "barrier")) {
			if (barrier(fd))
				return 1;
		} else if (send(fd, argv[i], strlen(argv[i]), 0) < 0) {
			return fail("send");
		}
	}
	return 0;
}
