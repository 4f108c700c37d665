/*
 * Opens a VFIO group as a driver does, maps so many MiB for its device, says so, and keeps them until its stdin ends.
 *
 * Usage: map NODE MIB ADDRESS-OF-THE-DEVICE
 */
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static void need(int condition, const char *what)
{
	if (!condition) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	need(argc == 4, "usage: map NODE MIB ADDRESS");
	size_t size = strtoul(argv[2], NULL, 10) << 20;
	int container = open("/dev/vfio/vfio", O_RDWR), group = open(argv[1], O_RDWR);

	need(container >= 0 && group >= 0, "open");
	need(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "VFIO_GROUP_SET_CONTAINER");
	need(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU), "VFIO_SET_IOMMU");
	need(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[3]) >= 0, "VFIO_GROUP_GET_DEVICE_FD");
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	need(memory != MAP_FAILED, "mmap");
	memset(memory, 1, size);
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (unsigned long)memory,
		.iova = 0x100000000,
		.size = size,
	};
	need(!ioctl(container, VFIO_IOMMU_MAP_DMA, &map), "VFIO_IOMMU_MAP_DMA");
	puts("mapped");
	fflush(stdout);
	char byte;
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
