/*
 * Huge pages as a program of a container has them: maps pages of a file of a hugetlbfs, writes a number into the
 * first word of each, and prints how large a page is and the words that were there before.
 *
 * hugepage FILE PAGES NUMBER
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#define HUGETLBFS_MAGIC 0x958458f6

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	struct statfs there;
	size_t pages, number;
	char *mapped;
	int fd;

	if (argc != 4) {
		fprintf(stderr, "usage: hugepage FILE PAGES NUMBER\n");
		return 2;
	}
	pages = strtoul(argv[2], NULL, 10);
	number = strtoul(argv[3], NULL, 10);
	fd = open(argv[1], O_RDWR | O_CREAT, 0600);
	if (fd < 0)
		return fail("open");
	if (fstatfs(fd, &there))
		return fail("fstatfs");
	if (there.f_type != HUGETLBFS_MAGIC) {
		fprintf(stderr, "no hugetlbfs: %lx\n", (unsigned long)there.f_type);
		return 1;
	}
	if (ftruncate(fd, (off_t)(pages * there.f_bsize)))
		return fail("ftruncate");
	mapped = mmap(NULL, pages * there.f_bsize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapped == MAP_FAILED)
		return fail("mmap");
	printf("%ld", (long)there.f_bsize / 1024);
	for (size_t page = 0; page < pages; page++) {
		volatile size_t *word = (volatile size_t *)(mapped + page * there.f_bsize);

		printf(" %zu", *word);
		*word = number;
	}
	printf("\n");
	return 0;
}
