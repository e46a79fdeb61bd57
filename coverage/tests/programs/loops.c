/* Loops within a line, across lines, nested, and left in every way. */
#include <stdio.h>

static int one_line(int n) { int s = 0; for (int i = 0; i < n; i++) s += i; while (n--) { if (n == 3) continue; s ^= n; } return s; }

static int nested(int n)
{
	int s = 0;
	for (int i = 0; i < n; i++) for (int j = 0; j < i; j++) do { s += i * j; } while (s % 7 == 3);
	for (int i = 0; i < n; i++) {
		for (int j = 0; j < n; j++) {
			if (j == 4)
				break;
			if ((i ^ j) & 1)
				continue;
			s += j;
		}
	}
	return s;
}

static int jumps(int n)
{
	int tries = 0;
again:
	tries++; if (tries < n && n > 2) goto again; else if (n < 0) goto out;
	switch (n) { case 1: tries += 1; break; case 2: tries += 2; /* fallthrough */ case 5: tries += 5; break; default: tries--; }
	switch (n % 4) {
	case 0:
		return tries;
	case 1:
	case 2:
		tries *= 2;
		break;
	}
out:
	return tries;
}

static int conditions(int a, int b, int c)
{
	return a && (b || c) ? a < b ? 1 : 2 : !c ? 3 : 4;
}

int never_called(int x)
{
	return x ? x + 1 : 0;
}

int main(int argc, char **argv)
{
	int s = argc;
	for (int i = -1; i < 10; i++) s += one_line(i + 1) + nested(i) + jumps(i) + conditions(i & 1, i & 2, i & 4);
	printf("%d\n", s);
	return 0;
}
