/*
 * What processes of several rights may make in several directories.
 *
 *     file_rights DIRECTORY...
 *
 * Runs as root. Prints a line for each attempt: who, where, what, the error or the type, mode and owners of the file.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define NONE 64

static const struct {
	const char *name;
	unsigned int uid, group, capability, mapped;
} identities[] = {
	{ "nobody", 1000, 0, NONE, 0 },
	{ "group", 1000, 2000, NONE, 0 },
	{ "dac_override", 1000, 0, CAP_DAC_OVERRIDE, 0 },
	{ "fowner", 1000, 0, CAP_FOWNER, 0 },
	{ "fsetid", 1000, 2000, CAP_FSETID, 0 },
	{ "root of a user namespace", 0, 0, NONE, 1 },
	{ "root", 0, 0, NONE, 0 },
};

static void must(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static int make_file(const char *name, mode_t mode)
{
	int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, mode);

	if (fd < 0)
		return -1;
	close(fd);
	return 0;
}

static int file(const char *name) { return make_file(name, 0666); }
static int setgid_program(const char *name) { return make_file(name, 02777); }
static int directory(const char *name) { return mkdir(name, 0777); }
static int setgid_directory(const char *name) { return mkdir(name, 02777); }
static int symbolic_link(const char *name) { return symlink("nowhere", name); }
static int fifo(const char *name) { return mkfifo(name, 0666); }
static int node(const char *name) { return mknod(name, S_IFREG | 0640, 0); }
static int hard_link(const char *name) { return link("theirs", name); }
static int renamed(const char *name) { return rename("other", name); }
static int removed(const char *name) { (void)name; return unlink("spare"); }
static int changed(const char *name) { (void)name; return chmod("theirs", 0604); }
static int truncated(const char *name) { (void)name; return truncate("theirs", 1); }

static int socket_file(const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	int result;

	strcpy(address.sun_path, name);
	result = bind(fd, (struct sockaddr *)&address, sizeof(address));
	close(fd);
	return result;
}

static const struct {
	const char *name;
	int (*make)(const char *name);
} kinds[] = {
	{ "file", file }, { "setgid program", setgid_program }, { "directory", directory },
	{ "setgid directory", setgid_directory }, { "symbolic link", symbolic_link }, { "FIFO", fifo },
	{ "regular node", node }, { "socket", socket_file }, { "hard link", hard_link }, { "renamed", renamed },
	{ "removed", removed }, { "mode", changed }, { "truncated", truncated },
};

static void give_capability(unsigned int capability)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { { 0 } };

	if (capability != NONE)
		data[0].effective = data[0].permitted = 1u << capability;
	must(syscall(SYS_capset, &header, data), "capset");
}

static void write_map(pid_t pid, const char *name)
{
	char path[64];
	FILE *map;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	map = fopen(path, "w");
	if (!map || fputs("0 100000 65536", map) < 0 || fclose(map)) {
		perror(path);
		exit(1);
	}
}

static void become(size_t who, int ready, int go)
{
	gid_t group = identities[who].group;
	char byte = 0;

	if (identities[who].mapped) {
		must(unshare(CLONE_NEWUSER), "unshare");
		must(write(ready, &byte, 1), "write");
		must(read(go, &byte, 1), "read");
	}
	must(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl");
	must(setgroups(group ? 1 : 0, &group), "setgroups");
	must(setresgid(identities[who].uid, identities[who].uid, identities[who].uid), "setresgid");
	must(setresuid(identities[who].uid, identities[who].uid, identities[who].uid), "setresuid");
	if (identities[who].uid)
		give_capability(identities[who].capability);
}

static int attempt(size_t who, size_t what)
{
	int ready[2], go[2], status;
	char byte = 0;
	pid_t pid;

	must(pipe(ready), "pipe");
	must(pipe(go), "pipe");
	pid = fork();
	must(pid, "fork");
	if (!pid) {
		become(who, ready[1], go[0]);
		umask(022);
		_exit(kinds[what].make("made") ? errno : 0);
	}
	if (identities[who].mapped) {
		must(read(ready[0], &byte, 1), "read");
		write_map(pid, "uid_map");
		write_map(pid, "gid_map");
		must(write(go[1], &byte, 1), "write");
	}
	must(waitpid(pid, &status, 0), "waitpid");
	close(ready[0]); close(ready[1]); close(go[0]); close(go[1]);
	return WEXITSTATUS(status);
}

static void show(const char *name)
{
	struct stat found;

	if (!lstat(name, &found))
		printf(" %s %o %u:%u %ld", name, found.st_mode, found.st_uid, found.st_gid, (long)found.st_nlink);
}

int main(int count, char **names)
{
	int place;
	size_t who, what;

	must(setgroups(0, NULL), "setgroups");
	umask(0);
	for (place = 1; place < count; place++) {
		must(chdir(names[place]), names[place]);
		for (who = 0; who < sizeof(identities) / sizeof(*identities); who++) {
			for (what = 0; what < sizeof(kinds) / sizeof(*kinds); what++) {
				static const char *const others[] = { "theirs", "other", "spare", "made" };
				size_t other;
				int error;

				for (other = 0; other < 3; other++) {
					must(make_file(others[other], 0644), others[other]);
					must(chown(others[other], 3000, 3000), others[other]);
				}
				error = attempt(who, what);
				printf("%s in %s: %s: %s", identities[who].name, names[place], kinds[what].name,
				       error ? strerror(error) : "made");
				for (other = 0; other < 4; other++) {
					show(others[other]);
					remove(others[other]);
				}
				printf("\n");
			}
		}
	}
	return 0;
}
