// SPDX-License-Identifier: GPL-2.0
/*
 * Locks of every kind, and processes that wait for them.
 *
 * /sys/kernel/debug/kscope_locks/do: whoever writes to it takes the steps it writes, one after
 * the other, and keeps what it takes. A step is a letter and a number:
 *
 *	m0  mutex_lock()		r0  down_read()		t0  rt_mutex_lock()
 *	k0  mutex_lock_killable()	w0  down_write()	p0  percpu_down_write()
 *	s0  down()			c0  wait_for_completion()
 *	q0  wait_event()		x0  wait_event_interruptible_exclusive()
 *	v0  percpu_down_read()		o0  wait_on_bit()	f0  flush_work()
 *	b2  wait until two (or any other number) have come here
 *
 * /sys/kernel/debug/kscope_locks/locks: where each lock is, and which processes have it, by this
 * module's own account.
 */
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu-rwsem.h>
#include <linux/rtmutex.h>
#include <linux/rwsem.h>
#include <linux/sched.h>
#include <linux/semaphore.h>
#include <linux/seq_file.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>

#define COUNT 4
#define HOLDERS 8

static struct mutex mutexes[COUNT];
static struct rw_semaphore rwsems[COUNT];
static struct semaphore semaphores[COUNT];
static struct rt_mutex rt_mutexes[COUNT];
static struct completion completions[COUNT];
static wait_queue_head_t queues[COUNT];
static struct percpu_rw_semaphore percpu_rwsems[COUNT];
static struct work_struct works[COUNT];
static unsigned long bits;
static atomic_t arrived;

/* One that is a variable of its own, and so has a name of its own. */
DEFINE_MUTEX(kscope_named_mutex);

struct held {
	const char *name;
	void *addr;
	atomic_t count;
	int pids[HOLDERS];
};

enum { MUTEX, RWSEM, SEMAPHORE, RT_MUTEX, COMPLETION, QUEUE, PERCPU, WORK, KINDS };
static struct held helds[KINDS][COUNT];
static const char *const names[KINDS] = {
	"mutex", "rwsem", "semaphore", "rt_mutex", "completion", "queue", "percpu", "work",
};

static void hold(int kind, int at)
{
	struct held *held = &helds[kind][at];
	int place = atomic_inc_return(&held->count) - 1;

	if (place < HOLDERS)
		held->pids[place] = task_pid_nr(current);
}

static void work_function(struct work_struct *work)
{
	/* A work item needs the mutex of its own number. */
	int at = work - works;

	mutex_lock(&mutexes[at]);
	hold(MUTEX, at);
}

static int step(char what, int at)
{
	int error = 0;

	if (what == 'b') {
		atomic_inc(&arrived);
		while (atomic_read(&arrived) < at && !error)
			error = msleep_interruptible(10) ? -EINTR : 0;
		return error;
	}
	if (at < 0 || at >= COUNT)
		return -EINVAL;
	switch (what) {
	case 'm':
		mutex_lock(&mutexes[at]);
		hold(MUTEX, at);
		return 0;
	case 'k':
		error = mutex_lock_killable(&mutexes[at]);
		if (!error)
			hold(MUTEX, at);
		return error;
	case 'n':
		mutex_lock(&kscope_named_mutex);
		return 0;
	case 'r':
		down_read(&rwsems[at]);
		hold(RWSEM, at);
		return 0;
	case 'w':
		down_write(&rwsems[at]);
		hold(RWSEM, at);
		return 0;
	case 's':
		down(&semaphores[at]);
		hold(SEMAPHORE, at);
		return 0;
	case 't':
		rt_mutex_lock(&rt_mutexes[at]);
		hold(RT_MUTEX, at);
		return 0;
	case 'p':
		percpu_down_write(&percpu_rwsems[at]);
		hold(PERCPU, at);
		return 0;
	case 'v':
		percpu_down_read(&percpu_rwsems[at]);
		hold(PERCPU, at);
		return 0;
	case 'c':
		wait_for_completion(&completions[at]);
		return 0;
	case 'q':
		wait_event(queues[at], READ_ONCE(bits) & BIT(16 + at));
		return 0;
	case 'x':
		return wait_event_interruptible_exclusive(queues[at],
							  READ_ONCE(bits) & BIT(16 + at));
	case 'o':
		set_bit(at, &bits);
		return wait_on_bit(&bits, at, TASK_UNINTERRUPTIBLE);
	case 'f':
		schedule_work(&works[at]);
		flush_work(&works[at]);
		return 0;
	}
	return -EINVAL;
}

static ssize_t do_write(struct file *file, const char __user *user, size_t len, loff_t *pos)
{
	char text[64];
	char *at = text;

	if (len >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, user, len))
		return -EFAULT;
	text[len] = 0;
	while (*at) {
		char what = *at++;
		int error;

		if (what == ' ' || what == '\n')
			continue;
		error = step(what, *at ? *at++ - '0' : -1);
		if (error)
			return error;
	}
	return len;
}

static const struct file_operations do_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = do_write,
};

static int locks_show(struct seq_file *out, void *unused)
{
	int kind, at, place;

	for (kind = 0; kind < KINDS; kind++) {
		for (at = 0; at < COUNT; at++) {
			struct held *held = &helds[kind][at];
			int count = min(atomic_read(&held->count), HOLDERS);

			seq_printf(out, "%s%d 0x%lx", held->name, at, (unsigned long)held->addr);
			for (place = 0; place < count; place++)
				seq_printf(out, " %d", held->pids[place]);
			seq_putc(out, '\n');
		}
	}
	seq_printf(out, "bits 0x%lx\n", (unsigned long)&bits);
	seq_printf(out, "named 0x%lx\n", (unsigned long)&kscope_named_mutex);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(locks);

static struct dentry *directory;

static int __init kscope_locks_init(void)
{
	int kind, at;

	for (at = 0; at < COUNT; at++) {
		mutex_init(&mutexes[at]);
		init_rwsem(&rwsems[at]);
		sema_init(&semaphores[at], 1);
		rt_mutex_init(&rt_mutexes[at]);
		init_completion(&completions[at]);
		init_waitqueue_head(&queues[at]);
		if (percpu_init_rwsem(&percpu_rwsems[at]))
			return -ENOMEM;
		INIT_WORK(&works[at], work_function);
		helds[MUTEX][at].addr = &mutexes[at];
		helds[RWSEM][at].addr = &rwsems[at];
		helds[SEMAPHORE][at].addr = &semaphores[at];
		helds[RT_MUTEX][at].addr = &rt_mutexes[at];
		helds[COMPLETION][at].addr = &completions[at];
		helds[QUEUE][at].addr = &queues[at];
		helds[PERCPU][at].addr = &percpu_rwsems[at];
		helds[WORK][at].addr = &works[at];
		for (kind = 0; kind < KINDS; kind++)
			helds[kind][at].name = names[kind];
	}
	directory = debugfs_create_dir("kscope_locks", NULL);
	debugfs_create_file("do", 0200, directory, NULL, &do_fops);
	debugfs_create_file("locks", 0400, directory, NULL, &locks_fops);
	return 0;
}
module_init(kscope_locks_init);

MODULE_DESCRIPTION("Locks to wait for");
MODULE_LICENSE("GPL");
