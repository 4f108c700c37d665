/* What a program in a container has of the host's sockets and of changes of its files.
 *
 * connect PATH TEXT   sends the text to a socket and prints what it answers, or the error
 * watch DIRECTORY     makes DIRECTORY/ready, looks at DIRECTORY/file until it is another, and prints whether
 *                     inotify(7) has told of it
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int dial(const char *path, const char *text)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char answer[256];
	ssize_t count;
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		puts(strerror(errno));
		return 0;
	}
	if (write(fd, text, strlen(text)) < 0 || shutdown(fd, SHUT_WR))
		puts(strerror(errno));
	while ((count = read(fd, answer, sizeof(answer))) > 0)
		fwrite(answer, 1, count, stdout);
	puts(count < 0 ? strerror(errno) : "");
	return 0;
}

static int watch(const char *directory)
{
	int watching = inotify_init1(IN_NONBLOCK), fd;
	struct pollfd event = { .fd = watching, .events = POLLIN };
	char before[64] = "", now[64];

	if (chdir(directory) || inotify_add_watch(watching, ".", IN_ALL_EVENTS & ~(IN_OPEN | IN_ACCESS | IN_CLOSE)) < 0) {
		puts(strerror(errno));
		return 1;
	}
	for (int round = 0;; round++) {
		memset(now, 0, sizeof(now));
		fd = open("file", O_RDONLY);
		if (read(fd, now, sizeof(now) - 1) < 0)
			puts(strerror(errno));
		close(fd);
		if (round && strcmp(before, now))
			break;
		strcpy(before, now);
		if (!round) {
			close(open("ready", O_CREAT | O_WRONLY, 0600));
			usleep(100 * 1000);
			while (poll(&event, 1, 0) > 0) { /* of "ready" */
				char events[4096];
				if (read(watching, events, sizeof(events)) < 0)
					break;
			}
		}
		usleep(20 * 1000);
	}
	now[strcspn(now, "\n")] = 0;
	printf("%s, inotify: %s\n", now, poll(&event, 1, 500) > 0 ? "yes" : "no");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "connect"))
		return dial(argv[2], argv[3]);
	if (argc == 3 && !strcmp(argv[1], "watch"))
		return watch(argv[2]);
	return 2;
}
