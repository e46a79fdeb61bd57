/*
 * Runs a program and writes what it took to a file: its exit code, wall-clock
 * and processor time in microseconds, and its peak memory in KiB.
 *
 *     measure FILE PROGRAM [ARGUMENT...]
 *
 * Small and static, since the peak memory of a process counts what it was
 * before exec(), and a Python of 10 MiB would hide what is smaller.
 */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long us(struct timeval time)
{
	return time.tv_sec * 1000000L + time.tv_usec;
}

int main(int argc, char **argv)
{
	struct timespec start, end;
	struct rusage usage;
	int status;
	FILE *file;
	pid_t pid;

	if (argc < 3)
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &start);
	pid = fork();
	if (pid == 0) {
		execvp(argv[2], argv + 2);
		perror(argv[2]);
		_exit(127);
	}
	if (pid < 0 || wait4(pid, &status, 0, &usage) != pid)
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &end);
	file = fopen(argv[1], "w");
	if (!file)
		return 1;
	fprintf(file, "%d %ld %ld %ld\n",
		WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
		(end.tv_sec - start.tv_sec) * 1000000L + (end.tv_nsec - start.tv_nsec) / 1000,
		us(usage.ru_utime) + us(usage.ru_stime), usage.ru_maxrss);
	return fclose(file) != 0;
}
