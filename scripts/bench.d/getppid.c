/*
 * Prints the mean cost of a null system call in nanoseconds.
 *
 *     getppid [CALLS [for-ever]]
 *
 * For ever, each figure is behind the word "figure". Before them may be what a
 * kernel passes to its init because it does not know it (nokaslr).
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double measure(long n)
{
	struct timespec a, b;

	clock_gettime(CLOCK_MONOTONIC, &a);
	for (long i = 0; i < n; i++)
		syscall(SYS_getppid);
	clock_gettime(CLOCK_MONOTONIC, &b);
	return ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / n;
}

int main(int argc, char **argv)
{
	int forever = argc > 2;
	long n = argc > 1 ? atol(argv[argc - 1 - forever]) : 100000;

	while (forever) {
		printf("figure %.0f\n", measure(n));
		fflush(stdout);
	}
	printf("%.0f\n", measure(n));
	return 0;
}
