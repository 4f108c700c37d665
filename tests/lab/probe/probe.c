/*
 * A VFIO driver in small: does with a device what DPDK or SPDK would, and prints what it saw as one JSON object.
 *
 *     probe [/dev/vfio/GROUP [ADDRESS]]
 *     probe /dev/vfio/devices/vfioN      by the device's file and /dev/iommu in place of its group and /dev/vfio/vfio
 *
 * Without an argument the only numbered node of /dev/vfio is taken, without an address the group's first function.
 * Needs no privilege beyond the two nodes.
 * With QEMU's "edu" device it also moves data: random bytes to the device and back, a message-signalled interrupt, and
 * a transfer to an address that is not mapped. The registers are those of QEMU's docs/specs/edu.rst.
 * With PROBE_MIB in the environment so many MiB of 4 KiB pages are mapped before the transfers, from 4 GiB on, or, with
 * PROBE_IDENTITY, at the IOVA that is the memory's own virtual address, as SPDK does without root.
 * With PROBE_RESET nothing is driven: the device is reset by both calls of VFIO, and by the bus reset an e1000e loses
 * what was written to one of its registers.
 * Exit code 0 when every step did what it should.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define IOVA 0x100000UL          /* edu reaches 28 bits of address */
#define IOVA_UNMAPPED 0x200000UL
#define EDU_BUFFER 0x40000UL
/* The device's buffer has a page, but QEMU before 8.0 ends itself when a transfer reaches its last byte. */
#define COUNT 4032UL
#define DMA_SECONDS 30           /* a transfer takes 0.1 s, and twenty times that in a guest of a guest */

/*
 * The device file interface, which Debian 12's own headers are too old for: Linux include/uapi/linux/vfio.h and
 * include/uapi/linux/iommufd.h of 6.12.
 */
#define DEVICE_BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)
#define DEVICE_ATTACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 19)
#define IOAS_ALLOC _IO(VFIO_TYPE, 0x81)
#define IOAS_MAP _IO(VFIO_TYPE, 0x85)
#define IOAS_UNMAP _IO(VFIO_TYPE, 0x86)
#define IOAS_MAP_FLAGS 0x7 /* at a fixed IOVA, writeable, readable */

struct device_bind_iommufd { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; };
struct device_attach_iommufd_pt { uint32_t argsz, flags, pt_id; };
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct ioas_map { uint32_t size, flags, ioas_id, reserved; uint64_t user_va, length, iova; };
struct ioas_unmap { uint32_t size, ioas_id; uint64_t iova, length; };

static int failures;
static int group = -1; /* the open group, -1 for a device that was opened by its file */
static uint32_t ioas; /* the address space behind /dev/iommu; 0 where there is a VFIO container */

static void fail(const char *step)
{
	printf(",\n  \"error\": \"%s: %s\"", step, strerror(errno));
	failures++;
}

static void finish(void)
{
	printf(",\n  \"passed\": %s\n}\n", failures ? "false" : "true");
	exit(failures ? 1 : 0);
}

static void need(int ok, const char *step)
{
	if (!ok) {
		fail(step);
		finish();
	}
}

static void say(const char *key, int ok)
{
	printf(",\n  \"%s\": %s", key, ok ? "true" : "false");
	if (!ok)
		failures++;
}

static void say_bytes(const char *key, const uint8_t *bytes, unsigned count)
{
	printf(",\n  \"%s\": \"", key);
	for (unsigned i = 0; i < count; i++)
		printf("%02x", bytes[i]);
	printf("\"");
}

/* The group's number is what the kernel calls the node's device, wherever the node stands. */
static long group_number(const char *node)
{
	char link[64], target[PATH_MAX];
	struct stat st;

	if (stat(node, &st) || !S_ISCHR(st.st_mode))
		return -1;
	snprintf(link, sizeof(link), "/sys/dev/char/%u:%u", major(st.st_rdev), minor(st.st_rdev));
	ssize_t length = readlink(link, target, sizeof(target) - 1);
	if (length < 0)
		return -1;
	target[length] = 0;
	return strtol(strrchr(target, '/') + 1, NULL, 10);
}

static void only_node(char *path, size_t size)
{
	DIR *dir = opendir("/dev/vfio");
	struct dirent *entry;

	need(dir != NULL, "opendir /dev/vfio");
	while ((entry = readdir(dir)))
		if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9')
			snprintf(path, size, "/dev/vfio/%s", entry->d_name);
	closedir(dir);
	need(path[0], "no numbered node in /dev/vfio");
}

static void first_device(long group, char *name, size_t size)
{
	char path[128];
	char best[64] = "";
	struct dirent *entry;

	snprintf(path, sizeof(path), "/sys/kernel/iommu_groups/%ld/devices", group);
	DIR *dir = opendir(path);
	need(dir != NULL, path);
	while ((entry = readdir(dir))) {
		char class_path[512], text[16] = "";
		if (entry->d_name[0] == '.')
			continue;
		snprintf(class_path, sizeof(class_path), "%s/%s/class", path, entry->d_name);
		FILE *file = fopen(class_path, "r");
		if (!file || !fgets(text, sizeof(text), file))
			text[0] = 0;
		if (file)
			fclose(file);
		/* A host bridge, a PCI-to-PCI bridge of either kind; others of that base class are endpoints. */
		if (!strncmp(text, "0x0600", 6) || !strncmp(text, "0x0604", 6) || !strncmp(text, "0x0609", 6))
			continue;
		if (!best[0] || strcmp(entry->d_name, best) < 0)
			snprintf(best, sizeof(best), "%.63s", entry->d_name);
	}
	closedir(dir);
	need(best[0], "no device in the group");
	snprintf(name, size, "%s", best);
}

static void print_regions(int device, unsigned count)
{
	printf(",\n  \"regions\": [");
	for (unsigned i = 0; i < count; i++) {
		struct vfio_region_info info = {.argsz = sizeof(info), .index = i};
		if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info))
			printf("%s\n    {\"index\": %u, \"errno\": %d}", i ? "," : "", i, errno);
		else
			printf("%s\n    {\"index\": %u, \"size\": %llu, \"flags\": %u}", i ? "," : "", i,
			       (unsigned long long)info.size, info.flags);
	}
	printf("\n  ]");
}

static void print_interrupts(int device, unsigned count)
{
	printf(",\n  \"interrupts\": [");
	for (unsigned i = 0; i < count; i++) {
		struct vfio_irq_info info = {.argsz = sizeof(info), .index = i};
		if (ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &info))
			printf("%s\n    {\"index\": %u, \"errno\": %d}", i ? "," : "", i, errno);
		else
			printf("%s\n    {\"index\": %u, \"count\": %u, \"flags\": %u}", i ? "," : "", i, info.count, info.flags);
	}
	printf("\n  ]");
}

static void print_config(int device, off_t config)
{
	uint8_t header[64];
	unsigned next, seen = 0;

	need(pread(device, header, sizeof(header), config) == sizeof(header), "read of the configuration space");
	printf(",\n  \"vendor\": \"%02x%02x\",\n  \"device\": \"%02x%02x\"", header[1], header[0], header[3], header[2]);
	printf(",\n  \"revision\": %u,\n  \"class\": \"%02x%02x%02x\"", header[8], header[11], header[10], header[9]);
	printf(",\n  \"subsystem\": \"%02x%02x:%02x%02x\",\n  \"header_type\": %u", header[0x2d], header[0x2c], header[0x2f],
	       header[0x2e], header[0x0e]);
	printf(",\n  \"capabilities\": [");
	for (next = header[0x34]; next && seen < 48; seen++) {
		uint8_t capability[2];
		if (pread(device, capability, 2, config + (next & ~3u)) != 2)
			break;
		printf("%s%u", seen ? ", " : "", capability[0]);
		next = capability[1];
	}
	printf("]");
}

static int wait_for_dma(volatile uint8_t *bar)
{
	for (int i = 0; i < DMA_SECONDS * 1000; i++) {
		if (!(*(volatile uint64_t *)(bar + 0x98) & 1))
			return 0;
		usleep(1000);
	}
	errno = ETIMEDOUT;
	return -1;
}

/* command: 0 from memory to the device, 2 from the device to memory */
static int dma(volatile uint8_t *bar, uint64_t iova, uint64_t count, unsigned command)
{
	*(volatile uint64_t *)(bar + 0x80) = command ? EDU_BUFFER : iova;
	*(volatile uint64_t *)(bar + 0x88) = command ? iova : EDU_BUFFER;
	*(volatile uint64_t *)(bar + 0x90) = count;
	*(volatile uint64_t *)(bar + 0x98) = 1 | command;
	return wait_for_dma(bar);
}

static void map(int container, void *memory, uint64_t iova, uint64_t size)
{
	if (ioas) {
		struct ioas_map request = {
			.size = sizeof(request),
			.flags = IOAS_MAP_FLAGS,
			.ioas_id = ioas,
			.user_va = (uintptr_t)memory,
			.iova = iova,
			.length = size,
		};
		need(!ioctl(container, IOAS_MAP, &request), "IOMMU_IOAS_MAP");
		return;
	}
	struct vfio_iommu_type1_dma_map request = {
		.argsz = sizeof(request),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = size,
	};
	need(!ioctl(container, VFIO_IOMMU_MAP_DMA, &request), "VFIO_IOMMU_MAP_DMA");
}

static void unmap(int container, uint64_t iova, uint64_t size)
{
	if (ioas) {
		struct ioas_unmap request = {.size = sizeof(request), .ioas_id = ioas, .iova = iova, .length = size};
		need(!ioctl(container, IOAS_UNMAP, &request), "IOMMU_IOAS_UNMAP");
		return;
	}
	struct vfio_iommu_type1_dma_unmap request = {.argsz = sizeof(request), .iova = iova, .size = size};
	need(!ioctl(container, VFIO_IOMMU_UNMAP_DMA, &request), "VFIO_IOMMU_UNMAP_DMA");
}

static void set_bus_master(int device, off_t config)
{
	uint16_t command;
	need(pread(device, &command, 2, config + 4) == 2, "read of the command register");
	command |= 0x6; /* memory space, bus master */
	need(pwrite(device, &command, 2, config + 4) == 2, "write of the command register");
}

static int take_interrupt(int device, volatile uint8_t *bar)
{
	char space[sizeof(struct vfio_irq_set) + sizeof(int32_t)];
	struct vfio_irq_set *set = (struct vfio_irq_set *)space;
	int32_t event = eventfd(0, EFD_CLOEXEC);
	uint64_t count = 0;

	need(event >= 0, "eventfd");
	*set = (struct vfio_irq_set){
		.argsz = sizeof(space),
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		.index = VFIO_PCI_MSI_IRQ_INDEX,
		.count = 1,
	};
	memcpy(set->data, &event, sizeof(event));
	need(!ioctl(device, VFIO_DEVICE_SET_IRQS, set), "VFIO_DEVICE_SET_IRQS for MSI");
	*(volatile uint32_t *)(bar + 0x60) = 1;
	struct pollfd wait = {.fd = event, .events = POLLIN};
	int arrived = poll(&wait, 1, DMA_SECONDS * 1000) == 1 && read(event, &count, 8) == 8 && count >= 1;
	*(volatile uint32_t *)(bar + 0x64) = *(volatile uint32_t *)(bar + 0x24);
	return arrived;
}

static void map_more(int container)
{
	const char *mib = getenv("PROBE_MIB");

	if (!mib)
		return;
	size_t size = strtoul(mib, NULL, 10) << 20;
	uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	need(memory != MAP_FAILED, "mmap of more memory");
	madvise(memory, size, MADV_NOHUGEPAGE);
	memset(memory, 1, size);
	map(container, memory, getenv("PROBE_IDENTITY") ? (uintptr_t)memory : 0x100000000UL, size);
	say("more_mapped", 1);
}

static void drive_edu(int container, int device, volatile uint8_t *bar)
{
	uint8_t *memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t sent[COUNT];

	need(memory != MAP_FAILED, "mmap of memory");
	*(volatile uint32_t *)(bar + 4) = 0x12345678;
	say("alive", *(volatile uint32_t *)(bar + 4) == ~0x12345678u);

	map_more(container);
	map(container, memory, IOVA, 2 * PAGE);
	need(getrandom(memory, COUNT, 0) == (ssize_t)COUNT, "getrandom");
	memcpy(sent, memory, COUNT);
	need(!dma(bar, IOVA, COUNT, 0), "transfer to the device");
	memset(memory + PAGE, 0, COUNT);
	need(!dma(bar, IOVA + PAGE, COUNT, 2), "transfer from the device");
	int matched = memcmp(memory + PAGE, sent, COUNT) == 0;
	say("dma_matched", matched);
	if (!matched) { /* zeros: what the device wrote went elsewhere; else it had not read what was sent */
		say_bytes("sent", sent, 16);
		say_bytes("received", memory + PAGE, 16);
	}

	/* The device still holds the random bytes; where they must not go, a pattern must stay. */
	map(container, memory + 2 * PAGE, IOVA_UNMAPPED, PAGE);
	memset(memory + 2 * PAGE, 0xa5, PAGE);
	unmap(container, IOVA_UNMAPPED, PAGE);
	need(!dma(bar, IOVA_UNMAPPED, COUNT, 2), "transfer to an address that is not mapped");
	int untouched = 1;
	for (unsigned long i = 0; i < PAGE; i++)
		untouched &= memory[2 * PAGE + i] == 0xa5;
	say("unmapped_dma_blocked", untouched);
	say("interrupt_taken", take_interrupt(device, bar));
	unmap(container, IOVA, 2 * PAGE);
}

/* Linux drivers/vfio/pci/vfio_pci_core.c, vfio_pci_ioctl_pci_hot_reset(): the call resets the whole bus. It needs the
 * groups of all functions there, and no descriptor for a device that was opened by its file. */
static int reset_bus(int device)
{
	char space[sizeof(struct vfio_pci_hot_reset) + sizeof(int32_t)];
	struct vfio_pci_hot_reset *reset = (struct vfio_pci_hot_reset *)space;

	*reset = (struct vfio_pci_hot_reset){.argsz = sizeof(space), .count = group >= 0};
	memcpy(reset->group_fds, &group, sizeof(group));
	return ioctl(device, VFIO_DEVICE_PCI_HOT_RESET, reset);
}

static int affected_functions(int device)
{
	char space[sizeof(struct vfio_pci_hot_reset_info) + 64 * sizeof(struct vfio_pci_dependent_device)];
	struct vfio_pci_hot_reset_info *info = (struct vfio_pci_hot_reset_info *)space;

	*info = (struct vfio_pci_hot_reset_info){.argsz = sizeof(space)};
	need(!ioctl(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, info), "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO");
	return info->count;
}

/* VET of an e1000e, which is 0x8100 after a reset (Intel 82574 datasheet, 10.2.2.8). */
#define VET 0x38
#define VET_DEFAULT 0x8100u

static void reset_device(int device, off_t config, volatile uint8_t *bar)
{
	uint32_t ids;

	need(pread(device, &ids, 4, config) == 4, "read of the ids");
	int has_register = ids == 0x10d38086 && bar;
	printf(",\n  \"affected_functions\": %d", affected_functions(device));
	if (has_register)
		*(volatile uint32_t *)(bar + VET) = 0x1234;
	need(!reset_bus(device), "VFIO_DEVICE_PCI_HOT_RESET");
	set_bus_master(device, config);
	int cleared = !has_register || *(volatile uint32_t *)(bar + VET) == VET_DEFAULT;
	printf(",\n  \"cleared_by_bus_reset\": %s", cleared ? "true" : "false");
	/* The kernel chooses the method; by power management, QEMU's e1000e keeps its registers. */
	need(!ioctl(device, VFIO_DEVICE_RESET), "VFIO_DEVICE_RESET");
	uint32_t after;
	need(pread(device, &after, 4, config) == 4 && after == ids, "read of the ids after the resets");
}

/* The device behind its group's node, in a new container: that of the address, "" for the group's first. */
static int open_by_group(const char *node, const char *address, int *space)
{
	char name[64];
	struct vfio_group_status status = {.argsz = sizeof(status)};
	struct vfio_iommu_type1_info iommu = {.argsz = sizeof(iommu)};

	int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	need(container >= 0, "open /dev/vfio/vfio");
	printf(",\n  \"api\": %d", ioctl(container, VFIO_GET_API_VERSION));
	say("type1", ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1_IOMMU) == 1);
	group = open(node, O_RDWR | O_CLOEXEC);
	need(group >= 0, "open of the group's node");
	long number = group_number(node);
	printf(",\n  \"group\": %ld", number);
	need(number >= 0, "the node is no VFIO group's");
	need(!ioctl(group, VFIO_GROUP_GET_STATUS, &status), "VFIO_GROUP_GET_STATUS");
	say("viable", status.flags & VFIO_GROUP_FLAGS_VIABLE);
	need(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "VFIO_GROUP_SET_CONTAINER");
	need(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU), "VFIO_SET_IOMMU");
	need(!ioctl(container, VFIO_IOMMU_GET_INFO, &iommu), "VFIO_IOMMU_GET_INFO");
	printf(",\n  \"iova_page_sizes\": %llu", (unsigned long long)iommu.iova_pgsizes);

	snprintf(name, sizeof(name), "%s", address);
	if (!name[0])
		first_device(number, name, sizeof(name));
	printf(",\n  \"address\": \"%s\"", name);
	int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
	need(device >= 0, "VFIO_GROUP_GET_DEVICE_FD");
	*space = container;
	return device;
}

/* What the last part of a link's target is. */
static void link_name(const char *path, const char *what, char *name, size_t size)
{
	char target[PATH_MAX];
	ssize_t length = readlink(path, target, sizeof(target) - 1);

	need(length > 0, what);
	target[length] = 0;
	snprintf(name, size, "%.63s", strrchr(target, '/') + 1);
}

/* The device behind its own file, in a new address space; the function is the file's grandparent in sysfs. */
static int open_by_file(const char *node, int *space)
{
	char path[128], name[64];
	struct stat st;
	struct device_bind_iommufd bind = {.argsz = sizeof(bind)};
	struct device_attach_iommufd_pt attach = {.argsz = sizeof(attach)};
	struct ioas_alloc alloc = {.size = sizeof(alloc)};

	int iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	need(iommu >= 0, "open /dev/iommu");
	int device = open(node, O_RDWR | O_CLOEXEC);
	need(device >= 0, "open of the device's file");
	need(!fstat(device, &st), "fstat of the device's file");
	snprintf(path, sizeof(path), "/sys/dev/char/%u:%u/device/iommu_group", major(st.st_rdev), minor(st.st_rdev));
	link_name(path, "the file is no VFIO device's", name, sizeof(name));
	printf(",\n  \"group\": %s", name);
	snprintf(path, sizeof(path), "/sys/dev/char/%u:%u/device", major(st.st_rdev), minor(st.st_rdev));
	link_name(path, "the file is no VFIO device's", name, sizeof(name));
	printf(",\n  \"address\": \"%s\"", name);
	bind.iommufd = iommu;
	need(!ioctl(device, DEVICE_BIND_IOMMUFD, &bind), "VFIO_DEVICE_BIND_IOMMUFD");
	need(!ioctl(iommu, IOAS_ALLOC, &alloc), "IOMMU_IOAS_ALLOC");
	attach.pt_id = alloc.out_ioas_id;
	need(!ioctl(device, DEVICE_ATTACH_IOMMUFD_PT, &attach), "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
	ioas = alloc.out_ioas_id;
	say("attached", 1);
	*space = iommu;
	return device;
}

int main(int argc, char **argv)
{
	char node[PATH_MAX] = "";
	int container;
	struct vfio_device_info info = {.argsz = sizeof(info)};
	struct vfio_region_info region = {.argsz = sizeof(region), .index = VFIO_PCI_CONFIG_REGION_INDEX};

	setvbuf(stdout, NULL, _IOFBF, 65536);
	if (argc > 1)
		snprintf(node, sizeof(node), "%s", argv[1]);
	printf("{\n  \"uid\": %u", getuid());
	if (!node[0])
		only_node(node, sizeof(node));
	printf(",\n  \"node\": \"%s\"", node);
	int by_file = strncmp(node, "/dev/vfio/devices/", strlen("/dev/vfio/devices/")) == 0;
	int device = by_file ? open_by_file(node, &container) : open_by_group(node, argc > 2 ? argv[2] : "", &container);
	need(!ioctl(device, VFIO_DEVICE_GET_INFO, &info), "VFIO_DEVICE_GET_INFO");
	printf(",\n  \"device_flags\": %u", info.flags & ~VFIO_DEVICE_FLAGS_CAPS);
	need(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region), "VFIO_DEVICE_GET_REGION_INFO");
	off_t config = region.offset;
	print_config(device, config);
	print_regions(device, info.num_regions);
	print_interrupts(device, info.num_irqs);

	region.index = VFIO_PCI_BAR0_REGION_INDEX;
	need(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region), "VFIO_DEVICE_GET_REGION_INFO of BAR 0");
	set_bus_master(device, config);
	void *bar = NULL;
	if (region.flags & VFIO_REGION_INFO_FLAG_MMAP) {
		bar = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, region.offset);
		need(bar != MAP_FAILED, "mmap of BAR 0");
		say("bar0_mapped", 1);
	}
	if (getenv("PROBE_RESET")) {
		reset_device(device, config, bar);
	} else if (bar) {
		uint32_t ids;
		need(pread(device, &ids, 4, config) == 4, "read of the ids");
		if (ids == 0x11e81234)
			drive_edu(container, device, bar);
	}
	finish();
}
