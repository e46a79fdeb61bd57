/* Code in a header; functions that begin on one line. */
static inline int shared(int n)
{
	if (n & 1)
		return n * 3 + 1;
	return n / 2;
}

#define DEFINE(name) \
	static int name##_inner(int n) { return n > 1 ? n - 1 : shared(n); } \
	static int name(int n) { int s = 0; while (n-- > 0) s += name##_inner(n); return s; }
