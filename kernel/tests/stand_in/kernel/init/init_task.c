/*
 * Stands for a kernel in tests: the types, variables and lists that kscope reads, in the layouts of
 * three versions (VERSION is 601, 612 or 703). The real ones are in include/linux/sched.h and
 * arch/um. Members that nobody reads are there to move the others about.
 *
 * Run, the program prints what the compiler made of the layouts, to compare with.
 */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

struct list_head {
	struct list_head *next, *prev;
};

typedef struct {
	int counter;
} atomic_t;

struct thread_info {
#if VERSION < 703
	struct task_struct *task;
#endif
	unsigned long flags;
	unsigned int cpu;
	int preempt_count;
};

struct __jmp_buf {
	unsigned long __rbx, __rsp, __rbp, __r12, __r13, __r14, __r15, __rip;
};
typedef struct __jmp_buf jmp_buf[1];

struct thread_struct {
#if VERSION >= 703
	jmp_buf switch_buf;
	unsigned long regs[30];
#else
	unsigned long regs[27];
	void *fault_addr;
	jmp_buf switch_buf;
#endif
};

struct signal_struct {
	atomic_t sigcnt;
	struct list_head thread_head;
};

enum pid_type { PIDTYPE_PID, PIDTYPE_TGID, PIDTYPE_PGID = 7, PIDTYPE_LOWEST = -2 };

struct task_struct {
#if VERSION >= 703
	struct thread_info thread_info;
#endif
	unsigned int __state;
	void *stack;
	atomic_t usage;
	unsigned int flags;
#if VERSION == 612
	char moved[40];
#endif
	struct list_head tasks;
	int exit_state;
	union {
		unsigned long word;
		struct {
			const volatile short half;
			unsigned int in_execve : 1, : 2, brk_randomized : 3;
		};
	};
	unsigned long long wide : 40, tail : 20;
	int pid;
	int tgid;
	enum pid_type type;
	char comm[16];
	struct signal_struct *signal;
	struct list_head thread_node;
	int matrix[2][3][4];
	struct thread_struct thread;
	unsigned long flexible[];
};

#define THREAD_SIZE 16384
#define STACK __attribute__((aligned(THREAD_SIZE)))
#if VERSION == 703
/* Nothing uses the union, so the DWARF does not have it. */
typedef unsigned long stack_area[THREAD_SIZE / sizeof(long)];
#else
union thread_union {
	struct thread_info thread_info;
	unsigned long stack[THREAD_SIZE / sizeof(long)];
};
typedef union thread_union stack_area;
#endif
stack_area init_stack STACK, stack1 STACK, stack2 STACK, stack3 STACK;

#if VERSION == 601
struct cpu_task {
	int pid;
	void *task;
};
extern struct cpu_task cpu_tasks[];
#elif VERSION == 612
struct cpu_task {
	void *task;
};
extern struct cpu_task cpu_tasks[];
#else
extern struct task_struct *cpu_tasks[4];
#endif

extern struct task_struct init_task, leader1, leader2, thread2;

#if VERSION == 703
stack_area cpu_irqstacks[4] STACK;
#else
stack_area cpu0_irqstack STACK;
#endif

static struct signal_struct init_signals = {
	.thread_head = { &init_task.thread_node, &init_task.thread_node },
};
struct signal_struct signal1 = {
	.thread_head = { &leader1.thread_node, &leader1.thread_node },
};
struct signal_struct signal2 = {
	.thread_head = { &leader2.thread_node, &thread2.thread_node },
};

struct task_struct init_task = {
	.stack = &init_stack,
	.flags = 0x00200000,
	.comm = "swapper",
	.tasks = { &leader1.tasks, &leader2.tasks },
	.signal = &init_signals,
	.thread_node = { &init_signals.thread_head, &init_signals.thread_head },
};
struct task_struct leader1 = {
	.__state = 1,
	.pid = 1,
	.tgid = 1,
	.stack = &stack1,
	.comm = "init",
	.tasks = { &leader2.tasks, &init_task.tasks },
	.signal = &signal1,
	.thread_node = { &signal1.thread_head, &signal1.thread_head },
	.thread = { .switch_buf = { { 1, 2, 3, 4, 5, 6, 7, 8 } } },
};
struct task_struct leader2 = {
	.__state = 0x402,
	.pid = 20,
	.tgid = 20,
	.stack = &stack2,
	.flags = 0x04208040,
	.comm = "kworker/0:1-eve",
	.tasks = { &init_task.tasks, &leader1.tasks },
	.signal = &signal2,
	.thread_node = { &thread2.thread_node, &signal2.thread_head },
};
struct task_struct thread2 = {
	.exit_state = 0x20,
	.pid = 21,
	.tgid = 20,
	.stack = &stack3,
	.comm = "worker\xff thread",
	.signal = &signal2,
	.thread_node = { &signal2.thread_head, &leader2.thread_node },
};

#if VERSION == 703
struct task_struct *cpu_tasks[4] = { &leader1, &thread2 };
#elif VERSION == 612
struct cpu_task cpu_tasks[1] = { { &leader1 } };
#else
struct cpu_task cpu_tasks[1] = { { 1, &leader1 } };
#endif

struct cpumask {
	unsigned long bits[1];
} __cpu_online_mask = { { VERSION == 703 ? 3 : 1 } };

typedef struct {
	unsigned long pte;
} pte_t;
typedef struct {
	unsigned long pmd;
} pmd_t;
typedef struct {
	unsigned long pgd;
} pgd_t;
typedef struct {
	pgd_t pgd;
} p4d_t;
#if VERSION >= 703
typedef struct {
	unsigned long pud;
} pud_t;
#else
typedef struct {
	p4d_t p4d;
} pud_t;
#endif
pgd_t swapper_pg_dir[512];
/* What the compiler describes, something must use. */
pte_t *a_pte;
pmd_t *a_pmd;
pud_t *a_pud;

struct maple_tree {
	unsigned int lock;
	void *ma_root;
	unsigned int ma_flags;
};
struct maple_range_64 {
	struct maple_pnode *parent;
	unsigned long pivot[15];
	union {
		void *slot[16];
		struct {
			void *pad[15];
			struct {
				unsigned char end, gap;
			} meta;
		};
	};
};
struct maple_arange_64 {
	struct maple_pnode *parent;
	unsigned long pivot[9];
	void *slot[10];
	unsigned long gap[10];
};
struct maple_node {
	union {
		struct maple_range_64 mr64;
		struct maple_arange_64 ma64;
	};
};
enum maple_type { maple_dense, maple_leaf_64, maple_range_64, maple_arange_64 } a_type;

struct mm_struct {
	struct {
		struct maple_tree mm_mt;
		pgd_t *pgd;
	};
};
struct maple_node *a_node;
struct mm_struct mm1;

unsigned long uml_physmem = 0x60000000, high_physmem = 0x64000000;
/* Survives `strip`, as the real one does. */
const void *setup __attribute__((section(".uml.setup.init"), used)) = &uml_physmem;

static inline __attribute__((always_inline)) int inner(int n)
{
	static volatile int sink;
	sink = n; /* line of inner */
	return n * 3;
}

__attribute__((noinline)) int linux_main(int argc)
{
	return inner(argc) + 1; /* line of linux_main */
}

#define SHOW(type, path) \
	printf("%s %s %zu %zu\n", #type, #path, offsetof(type, path), sizeof(((type *)0)->path))
#define BITS(field) \
	do { \
		struct task_struct t; \
		memset(&t, 0, sizeof(t)); \
		t.field = -1; \
		printf("bits %s", #field); \
		for (size_t i = 0; i < sizeof(t) * 8; i++) \
			if (((unsigned char *)&t)[i / 8] >> i % 8 & 1) \
				printf(" %zu", i); \
		printf("\n"); \
	} while (0)

int main(int argc, char **argv)
{
	SHOW(struct task_struct, __state);
	SHOW(struct task_struct, stack);
	SHOW(struct task_struct, tasks);
	SHOW(struct task_struct, tasks.prev);
	SHOW(struct task_struct, usage.counter);
	SHOW(struct task_struct, word);
	SHOW(struct task_struct, half);
	SHOW(struct task_struct, pid);
	SHOW(struct task_struct, type);
	SHOW(struct task_struct, comm);
	SHOW(struct task_struct, comm[15]);
	SHOW(struct task_struct, matrix);
	SHOW(struct task_struct, matrix[1]);
	SHOW(struct task_struct, matrix[1][2]);
	SHOW(struct task_struct, matrix[1][2][3]);
	SHOW(struct task_struct, thread.regs[26]);
	SHOW(struct task_struct, thread.switch_buf);
	SHOW(struct task_struct, thread.switch_buf[0].__rip);
	SHOW(struct signal_struct, thread_head.next);
	SHOW(struct __jmp_buf, __r15);
	BITS(in_execve);
	BITS(brk_randomized);
	BITS(wide);
	BITS(tail);
	return linux_main(argc) + (argv == NULL);
}
