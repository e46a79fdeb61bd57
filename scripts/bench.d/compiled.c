/* What the compile benchmark compiles: headers that a small program pulls in. */
#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int compare(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

int main(void)
{
	int v[256];

	for (int i = 0; i < 256; i++)
		v[i] = (int)(sin(i) * 1000);
	qsort(v, 256, sizeof(v[0]), compare);
	printf("%d %s\n", v[0], strerror(errno));
	return 0;
}
