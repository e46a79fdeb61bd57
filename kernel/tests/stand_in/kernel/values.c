/*
 * Values of every kind of type, to be printed. Linked into the stand-in for a kernel.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef signed char s8;
typedef _Bool bool;

struct list_head {
	struct list_head *next, *prev;
};
struct hlist_node {
	struct hlist_node *next, **pprev;
};
struct hlist_head {
	struct hlist_node *first;
};
typedef struct {
	int counter;
} atomic_t;
typedef struct refcount_struct {
	atomic_t refs;
} refcount_t;
struct kref {
	refcount_t refcount;
};
typedef struct {
	unsigned long pgd;
} pgd_t;
typedef struct {
	pgd_t pgd;
} p4d_t;

enum color { RED, GREEN = 7, BLUE = 200, DARK = -3 };
enum unsigned_color { WHITE, BLACK = 0xffffffff };
enum { NAMELESS = 42 };

struct point {
	int x, y;
};

struct declared_only;

struct all {
	signed char tiny;
	u8 byte;
	short half;
	int word;
	long wide;
	u64 unsigned_wide;
	bool truth;
	char letter;
	double fraction;
	float small_fraction;
	__int128 huge;
	enum color color;
	enum unsigned_color unsigned_color;
	enum color no_color;
	unsigned int low : 3, : 2, high : 7;
	int negative : 4;
	enum color color_bits : 9;
	bool flag : 1;
	char name[16];
	char full[4];
	u8 bytes[4];
	u8 name_in_bytes[8];
	u8 more_bytes[5];
	const char *text;
	const u8 *unsigned_text;
	char *nothing;
	void *pointer;
	struct point *inner;
	int (*function)(struct all *, int);
	struct point points[3];
	int matrix[2][3];
	int zeros[64];
	int ramp[6];
	atomic_t atomic;
	refcount_t refcount;
	struct kref kref;
	p4d_t p4d;
	struct list_head empty;
	struct list_head list;
	struct hlist_head hempty;
	struct hlist_head hlist;
	union {
		u32 as_word;
		struct {
			unsigned short as_low, as_high;
		};
	};
	struct {
		struct {
			struct {
				int deep;
			} c;
		} b;
	} a;
	struct declared_only *declared;
	int flexible[];
};

static int twice = 1;

int function(struct all *all, int number)
{
	static int calls = 41;

	return all->word + number + calls++ + twice++;
}

/* Inlined: what is static in it belongs to its abstract description. */
static inline __attribute__((always_inline)) int inlined(void)
{
	static int inlined_calls = 42;

	return inlined_calls++;
}

int inlines(void)
{
	return inlined() + inlined();
}

extern struct list_head ring;
static struct point origin = { 3, -4 };
struct node {
	int number;
	struct node *self;
	struct list_head link;
	struct hlist_node hlink;
} nodes[3] = {
	{ 10, &nodes[0], { &nodes[1].link, &ring }, { &nodes[1].hlink } },
	{ 11, &nodes[1], { &nodes[2].link, &nodes[0].link }, { &nodes[2].hlink } },
	{ 12, &nodes[2], { &ring, &nodes[1].link } },
};
struct list_head ring = { &nodes[0].link, &nodes[2].link };
struct hlist_head chain = { &nodes[0].hlink };
struct list_head other_list = { &other_list, &other_list };
struct hlist_node node;
int nameless = NAMELESS;
int (*functions[2])(struct all *, int) = { function, 0 };
int (*(*complicated)(const char *const, ...))[3];

struct all all = {
	.tiny = -5,
	.byte = 250,
	.half = -30000,
	.word = -2000000000,
	.wide = -9000000000000000000,
	.unsigned_wide = 18000000000000000000u,
	.truth = 1,
	.letter = 'A',
	.fraction = -2.5,
	.small_fraction = 0.25,
	.huge = ((__int128)1 << 64) + 2,
	.color = BLUE,
	.unsigned_color = BLACK,
	.no_color = 99,
	.low = 5,
	.high = 100,
	.negative = -7,
	.color_bits = DARK,
	.flag = 1,
	.name = "swa\"p\\\n",
	.full = { 'f', 'u', 'l', 'l' },
	.bytes = { 1, 2, 3, 255 },
	.name_in_bytes = "eth0",
	.text = "some text",
	.unsigned_text = (const u8 *)"an entry",
	.pointer = &all.name,
	.inner = &origin,
	.function = function,
	.points = { { 1, 2 }, { 3, 4 }, { 5, 6 } },
	.matrix = { { 1, 2, 3 }, { 4, 5, 6 } },
	.ramp = { 1, 1, 2, 2, 2, 3 },
	.atomic = { 17 },
	.refcount = { { 18 } },
	.kref = { { { 19 } } },
	.p4d = { { 0x1063 } },
	.empty = { &all.empty, &all.empty },
	.list = { &other_list, &other_list },
	.hlist = { &node },
	.as_word = 0x00020001,
	.a = { { { 77 } } },
};
