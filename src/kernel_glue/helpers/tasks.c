// SPDX-License-Identifier: GPL-2.0
/* Time, waiting, background work and the static key for watchers of owner changes. */

#include <linux/cpumask.h>
#include <linux/module.h>
#include <linux/ratelimit.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/workqueue.h>

#include "../helpers.h"

DEFINE_STATIC_KEY_DEFERRED_FALSE(rext4_watched, 30 * HZ);

void rext4_watched_add(void)
{
	static_branch_deferred_inc(&rext4_watched);
}

void rext4_watched_remove(void)
{
	static_branch_slow_dec_deferred(&rext4_watched);
}

void rext4_watched_flush(void)
{
	static_key_deferred_flush(&rext4_watched);
}

time64_t rext4_now(void)
{
	return ktime_get_real_seconds();
}

bool rext4_is_dying(void)
{
	return fatal_signal_pending(current);
}

/* Returns true if the current task is reclaiming memory. */
bool rext4_is_reclaiming(void)
{
	return current->flags & (PF_MEMALLOC | PF_KSWAPD);
}

static struct ratelimit_state rext4_line_limit = RATELIMIT_STATE_INIT_FLAGS(rext4_line_limit,
	DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST, RATELIMIT_MSG_ON_RELEASE);

/* Log how many lines have been left out since this was logged last. */
void rext4_log_left_out(void)
{
	int count = ratelimit_state_reset_miss(&rext4_line_limit);

	if (count)
		pr_warn("rext4: %d messages about inodes that could not be written were left out\n", count);
}

/* For lines that could come for every inode of a volume. */
bool rext4_may_log(void)
{
	if (!__ratelimit(&rext4_line_limit))
		return false;
	rext4_log_left_out();
	return true;
}

unsigned int rext4_processors(void)
{
	return num_online_cpus();
}

unsigned int rext4_no_reclaim_begin(void)
{
	return memalloc_nofs_save();
}

void rext4_no_reclaim_end(unsigned int flags)
{
	memalloc_nofs_restore(flags);
}

struct rext4_background {
	struct delayed_work work;
	void (*run)(void *data);
	void *data;
};

static void rext4_background_fn(struct work_struct *work)
{
	struct rext4_background *background = container_of(work, struct rext4_background, work.work);

	background->run(background->data);
}

/* A macro, so that each kind of work has its own lock class: work may wait for another kind. */
#define rext4_background_init(background, function, argument)		\
	do {								\
		INIT_DELAYED_WORK(&(background)->work, rext4_background_fn);	\
		(background)->run = (function);				\
		(background)->data = (argument);			\
	} while (0)

/* Runs a function in `count` threads, one of which is the caller, and waits for all of them. */
int rext4_run_parallel(void (*run)(void *data), void *data, unsigned int count)
{
	unsigned int others = count > 1 ? count - 1 : 0;
	struct rext4_background *parts = kcalloc(others, sizeof(*parts), GFP_KERNEL);
	unsigned int i;

	if (others && !parts)
		return -ENOMEM;
	for (i = 0; i < others; i++) {
		rext4_background_init(&parts[i], run, data);
		queue_work(system_dfl_wq, &parts[i].work.work);
	}
	run(data);
	for (i = 0; i < others; i++)
		flush_work(&parts[i].work.work);
	kfree(parts);
	return 0;
}

struct rext4_background *rext4_background_new(void (*run)(void *data), void *data)
{
	struct rext4_background *background = kzalloc(sizeof(*background), GFP_KERNEL);

	if (!background)
		return NULL;
	/* One that is never freed keeps the module, whose code it may run. */
	__module_get(THIS_MODULE);
	rext4_background_init(background, run, data);
	return background;
}

/* A start without a delay replaces a delayed one; a delayed start never replaces another. */
void rext4_background_start(struct rext4_background *background, unsigned int delay_ms)
{
	if (delay_ms)
		queue_delayed_work(system_dfl_long_wq, &background->work, msecs_to_jiffies(delay_ms));
	else
		mod_delayed_work(system_dfl_long_wq, &background->work, 0);
}

void rext4_background_free(struct rext4_background *background)
{
	cancel_delayed_work_sync(&background->work);
	kfree(background);
	module_put(THIS_MODULE);
}
