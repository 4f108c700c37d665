/*
 * Whether two directories are one for programs that talk by files.
 *
 *     shared_files hold DIRECTORY     lock, listen and map there until killed; makes "ready" when it does
 *     shared_files check DIRECTORY    print what reaches that process from this directory, as one JSON object
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int open_file(const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT, 0666);

	if (fd < 0) {
		perror(name);
		exit(1);
	}
	return fd;
}

static struct flock whole_file(void)
{
	return (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
}

static int make_socket(struct sockaddr_un *address)
{
	*address = (struct sockaddr_un){.sun_family = AF_UNIX, .sun_path = "socket"};
	return socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
}

static volatile char *map_file(void)
{
	int fd = open_file("mapping");
	void *memory;

	if (ftruncate(fd, 4096) || (memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
		perror("mapping");
		exit(1);
	}
	return memory;
}

static int hold(void)
{
	struct flock lock = whole_file();
	struct sockaddr_un address;
	int listener = make_socket(&address);
	volatile char *memory = map_file();

	if (flock(open_file("flock"), LOCK_EX) || fcntl(open_file("fcntl"), F_SETLK, &lock) ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 8) || mkfifo("fifo", 0666) ||
	    open("fifo", O_RDONLY | O_NONBLOCK) < 0) {
		perror("hold");
		return 1;
	}
	close(open_file("ready"));
	for (;; usleep(1000))
		if (memory[0])
			memory[1] = 1;
}

static void say(const char *name, const char *seen, const char *end)
{
	printf("\"%s\": \"%s\"%s", name, seen, end);
}

static int check(void)
{
	struct flock lock = whole_file();
	struct sockaddr_un address;
	int client = make_socket(&address);
	volatile char *memory;

	printf("{");
	say("flock", flock(open_file("flock"), LOCK_EX | LOCK_NB) ? strerror(errno) : "granted", ", ");
	say("fcntl", fcntl(open_file("fcntl"), F_SETLK, &lock) ? strerror(errno) : "granted", ", ");
	say("socket", connect(client, (struct sockaddr *)&address, sizeof(address)) ? strerror(errno) : "connected", ", ");
	say("fifo", open("fifo", O_WRONLY | O_NONBLOCK) < 0 ? strerror(errno) : "opened", ", ");
	memory = map_file();
	memory[0] = 1;
	for (int i = 0; i < 5000 && !memory[1]; i++)
		usleep(1000);
	say("mapping", memory[1] ? "seen" : "not seen", "}\n");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 3 || chdir(argv[2])) {
		perror("usage: shared_files hold|check DIRECTORY");
		return 2;
	}
	return strcmp(argv[1], "hold") ? check() : hold();
}
