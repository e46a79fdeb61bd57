/*
 * What goes on in the guests of the golden tests: processes that sleep, wait for each other, run,
 * and have some of everything open.
 *
 *	guest WAITS MODULE
 *
 * WAITS is tests/programs/waits, MODULE the module of tests/modules/locks. When all of them are
 * where they stay, what /proc has of them is printed, each file behind a line `@@ PATH`, and
 * `@@ ready` at the end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <net/ethernet.h>
#include <netpacket/packet.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Ways to wait, and what the locks of the module are taken for: see the programs. */
#define MODES "two-mutexes", "pi-mutex", "futex-shared", "pipe-read", "pipe-write", "pipe-self", \
	"fifo", "poll", "epoll", "wait-one", "vfork", "flock", "message", "semaphore", "socket", \
	"accept", "nanosleep", "sigwait", "stopped"

static const struct { const char *name, *steps; } lockers[] = {
	{ "lock-a", "m0 b2 m1" }, { "lock-b", "m1 b2 m0" }, { "behind", "m0" },
	{ "writer", "w0" }, { "reader", "r0" }, { "completion", "c1" }, { "queue", "q2" },
};

/* Ends the guest's command: nothing of this may go wrong. */
static long must(const char *what, long result)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

/* A child of this name. Returns whether this is it. */
static int child(const char *name)
{
	int pid = must("fork", fork());

	if (!pid)
		prctl(PR_SET_NAME, name);
	return !pid;
}

static int text(const char *path, int flags, const char *content)
{
	int fd = must(path, open(path, flags, 0644));

	must(path, write(fd, content, strlen(content)));
	return fd;
}

static char *map(size_t len, int flags, int fd, off_t offset)
{
	char *at = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, offset);

	must("mmap", at == MAP_FAILED ? -1 : 0);
	return at;
}

/* Private, shared, of a file, of one that is gone, of none; touched, or not. */
static void mappings(void)
{
	char *at = map(1 << 20, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd;

	memset(at, 'x', 5 * 4096);
	map(65536, MAP_SHARED | MAP_ANONYMOUS, -1, 0)[0] = 's';
	fd = must("mapped file", open("mapped file", O_RDWR | O_CREAT, 0644));
	must("ftruncate", ftruncate(fd, 3 * 4096));
	map(2 * 4096, MAP_PRIVATE, fd, 4096)[0] = 'm';
	fd = must("gone", open("gone", O_RDWR | O_CREAT, 0644));
	must("ftruncate", ftruncate(fd, 9000));
	map(9000, MAP_SHARED, fd, 0)[0] = 'g';
	unlink("gone");
	fd = must("memfd", memfd_create("a memfd", 0));
	must("ftruncate", ftruncate(fd, 8192));
	map(8192, MAP_SHARED, fd, 0)[0] = 1;
	mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void files(void)
{
	struct itimerspec hours = { .it_value.tv_sec = 36000 };
	int ends[2];

	text("log", O_WRONLY | O_CREAT | O_APPEND | O_SYNC, "twelve bytes");
	must("path", open(".", O_PATH | O_DIRECTORY));
	must("pipe", pipe2(ends, O_NONBLOCK));
	must("a name", mkfifo("a fifo", 0600));
	must("a fifo", open("a fifo", O_RDWR));
	must("null", open("/dev/null", O_RDONLY));
	must("status", open("/proc/self/status", O_RDONLY));
	must("epoll", epoll_create1(EPOLL_CLOEXEC));
	must("eventfd", eventfd(7, 0));
	must("inotify", inotify_init1(IN_NONBLOCK));
	timerfd_settime(must("timerfd", timerfd_create(CLOCK_MONOTONIC, 0)), 0, &hours, NULL);
}

static int bound(int domain, int type, int protocol, const void *address, socklen_t len)
{
	int fd = must("socket", socket(domain, type, protocol));

	must("bind", bind(fd, address, len));
	return fd;
}

/* Connected and not, and something in their queues. */
static void sockets(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_un unixes = { .sun_family = AF_UNIX, .sun_path = "a socket" };
	struct sockaddr_ll loopback = { .sll_family = AF_PACKET, .sll_ifindex = 1 };
	struct sockaddr_nl links = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int fd, pair[2];

	to.sin_port = htons(8080);
	listen(bound(AF_INET, SOCK_STREAM, 0, &to, sizeof(to)), 5);
	fd = must("socket", socket(AF_INET, SOCK_STREAM, 0));
	must("connect", connect(fd, (void *)&to, sizeof(to)));
	must("send", send(fd, "hello", 5, 0));
	to.sin_port = htons(5353);
	bound(AF_INET, SOCK_DGRAM, 0, &to, sizeof(to));
	fd = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	must("connect", connect(fd, (void *)&to, sizeof(to)));
	must("send", send(fd, "a datagram", 10, 0));
	listen(bound(AF_UNIX, SOCK_STREAM, 0, &unixes, sizeof(unixes)), 5);
	fd = must("socket", socket(AF_UNIX, SOCK_STREAM, 0));
	must("connect", connect(fd, (void *)&unixes, sizeof(unixes)));
	strcpy(unixes.sun_path + 1, "an abstract name");
	unixes.sun_path[0] = 0;
	bound(AF_UNIX, SOCK_DGRAM, 0, &unixes, offsetof(struct sockaddr_un, sun_path) + 17);
	must("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	must("send", send(pair[0], "seven", 5, 0));
	loopback.sll_protocol = htons(ETH_P_ALL);
	bound(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL), &loopback, sizeof(loopback));
	bound(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE, &links, sizeof(links));
	must("raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
}

/* A process that has everything open, and is in a directory that is gone. */
static void server(void)
{
	must("mkdir", mkdir("/tmp/server", 0755));
	must("chdir", chdir("/tmp/server"));
	mappings();
	files();
	sockets();
	must("mkdir", mkdir("cwd", 0755));
	must("chdir", chdir("cwd"));
	must("rmdir", rmdir("../cwd"));
	must("setresuid", setresuid(1000, 1001, 1002));
	pause();
}

static void alarmed(void)
{
	struct itimerval hours = { .it_value.tv_sec = 36000 };
	timer_t timer;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct itimerspec later = { .it_value.tv_sec = 36001 };

	setitimer(ITIMER_REAL, &hours, NULL);
	must("timer", timer_create(CLOCK_MONOTONIC, &event, &timer));
	timer_settime(timer, 0, &later, NULL);
	pause();
}

/* Those that are nice have a group of their own, and share what it gets. */
static void busy(int nice)
{
	if (nice)
		close(text("/sys/fs/cgroup/batch/cgroup.procs", O_WRONLY, "0"));
	setpriority(PRIO_PROCESS, 0, nice * 5);
	for (;;)
		;
}

static void start(const char *waits, const char *module)
{
	static const char doing[] = "/sys/kernel/debug/kscope_locks/do";
	char line[512];
	size_t at;
	FILE *said;
	int ends[2];
	int fd = must(module, open(module, O_RDONLY));

	must("insmod", syscall(SYS_finit_module, fd, "", 0));
	close(fd);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	if (child("server"))
		server();
	if (child("alarmed"))
		alarmed();
	for (at = 0; at < sizeof(lockers) / sizeof(*lockers); at++) {
		if (child(lockers[at].name)) {
			text(doing, O_WRONLY, lockers[at].steps);
			pause();
		}
		usleep(50000);
	}
	must("pipe", pipe(ends));
	if (child("waits")) {
		dup2(ends[1], 1);
		close(ends[0]);
		close(ends[1]);
		must(waits, execl(waits, waits, MODES, NULL));
	}
	close(ends[1]);
	said = fdopen(ends[0], "r");
	do
		must("waits", fgets(line, sizeof(line), said) ? 0 : -1);
	while (strcmp(line, "ready\n"));
	must("cgroup2", mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL));
	close(text("/sys/fs/cgroup/cgroup.subtree_control", O_WRONLY, "+cpu"));
	must("batch", mkdir("/sys/fs/cgroup/batch", 0755));
	for (at = 0; at < 3; at++)
		if (child(at ? "batch" : "busy"))
			busy(at);
}

static void record(const char *path)
{
	static char content[1 << 16];
	ssize_t len;
	char last = '\n';
	int fd = open(path, O_RDONLY | O_NONBLOCK);

	/* What this kernel does not have, or a thread that has ended. */
	if (fd < 0)
		return;
	printf("@@ %s\n", path);
	while ((len = read(fd, content, sizeof(content))) > 0) {
		fwrite(content, len, 1, stdout);
		last = content[len - 1];
	}
	close(fd);
	if (last != '\n')
		putchar('\n');
}

/* Runs something for every numeric entry of a directory. */
static void each(const char *directory, void (*what)(const char *path))
{
	DIR *dir = opendir(directory);
	struct dirent *entry;
	char path[512];

	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
		what(path);
	}
	if (dir)
		closedir(dir);
}

static void recorded(const char *directory, const char *const *names)
{
	char path[512];

	for (; *names; names++) {
		snprintf(path, sizeof(path), "%s/%s", directory, *names);
		record(path);
	}
}

static void link_of(const char *path)
{
	char to[512];
	ssize_t len = readlink(path, to, sizeof(to));

	if (len > 0)
		printf("@@ %s\n%.*s\n", path, (int)len, to);
}

static void thread(const char *path)
{
	recorded(path, (const char *[]) { "stat", NULL });
}

static void process(const char *path)
{
	char below[512], name[64] = "";
	FILE *comm;

	recorded(path, (const char *[]) { "cmdline", NULL });
	snprintf(below, sizeof(below), "%s/task", path);
	each(below, thread);
	snprintf(below, sizeof(below), "%s/comm", path);
	comm = fopen(below, "r");
	if (comm) {
		if (!fgets(name, sizeof(name), comm))
			name[0] = 0;
		fclose(comm);
	}
	if (strcmp(name, "server\n"))
		return;
	recorded(path, (const char *[]) { "maps", NULL });
	snprintf(below, sizeof(below), "%s/fd", path);
	each(below, link_of);
}

/* The whole of a program into the page cache, so that stacks through it can be followed. */
static void cache(const char *path)
{
	char bytes[4096];
	int fd = must(path, open(path, O_RDONLY));

	while (read(fd, bytes, sizeof(bytes)) > 0)
		;
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	cache("/proc/self/exe");
	cache(argv[1]);
	start(argv[1], argv[2]);
	/* The last ones reach where they stay. */
	usleep(1000000);
	recorded("/proc", (const char *[]) {
		"version", "cmdline", "modules", "self/mounts", "self/mountinfo", "slabinfo",
		"interrupts", "timer_list", "net/unix", "net/tcp", "net/udp", "net/raw", "net/packet",
		"net/netlink", NULL });
	each("/proc", process);
	record("/dev/kmsg");
	printf("@@ ready\n");
	fflush(stdout);
	pause();
	return 0;
}
