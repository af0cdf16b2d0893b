// SPDX-License-Identifier: GPL-2.0
/* Access control lists, security labels and privileges. */

#include <linux/capability.h>
#include <linux/security.h>
#include <linux/xattr.h>

#include "../helpers.h"

struct posix_acl *rext4_acl_new(const struct rext4_acl_entry *entries, unsigned int count)
{
	struct posix_acl *acl = posix_acl_alloc(count, GFP_NOFS);
	unsigned int i;

	if (!acl)
		return ERR_PTR(-ENOMEM);
	for (i = 0; i < count; i++) {
		acl->a_entries[i].e_tag = entries[i].tag;
		acl->a_entries[i].e_perm = entries[i].permissions;
		if (entries[i].tag == ACL_USER)
			acl->a_entries[i].e_uid = make_kuid(&init_user_ns, entries[i].id);
		else if (entries[i].tag == ACL_GROUP)
			acl->a_entries[i].e_gid = make_kgid(&init_user_ns, entries[i].id);
	}
	if (posix_acl_valid(&init_user_ns, acl)) {
		posix_acl_release(acl);
		return ERR_PTR(-EUCLEAN);
	}
	return acl;
}

void rext4_acl_get(struct posix_acl *acl)
{
	posix_acl_dup(acl);
}

void rext4_acl_release(struct posix_acl *acl)
{
	posix_acl_release(acl);
}

unsigned int rext4_acl_count(const struct posix_acl *acl)
{
	return acl->a_count;
}

void rext4_acl_entry(const struct posix_acl *acl, unsigned int number, struct rext4_acl_entry *entry)
{
	const struct posix_acl_entry *from = &acl->a_entries[number];

	entry->tag = from->e_tag;
	entry->permissions = from->e_perm;
	entry->id = 0;
	if (from->e_tag == ACL_USER)
		entry->id = from_kuid(&init_user_ns, from->e_uid);
	else if (from->e_tag == ACL_GROUP)
		entry->id = from_kgid(&init_user_ns, from->e_gid);
}

struct rext4_labels {
	rext4_take_label take;
	void *data;
};

static int rext4_take_labels(struct inode *inode, const struct xattr *labels, void *info)
{
	struct rext4_labels *to = info;
	int error;

	for (; labels->name; labels++) {
		error = to->take(to->data, labels->name, labels->value, labels->value_len);
		if (error)
			return error;
	}
	return 0;
}

int rext4_init_security(struct inode *inode, struct inode *dir, const char *name, u32 len, rext4_take_label take,
			void *data)
{
	struct qstr last = QSTR_INIT(name, len);
	struct rext4_labels to = { .take = take, .data = data };

	return security_inode_init_security(inode, dir, &last, rext4_take_labels, &to);
}

bool rext4_may_use_reserve(u32 uid, u32 gid)
{
	kgid_t group = make_kgid(&init_user_ns, gid);

	return uid_eq(make_kuid(&init_user_ns, uid), current_fsuid()) || (gid && in_group_p(group)) ||
	       capable(CAP_SYS_RESOURCE);
}

bool rext4_is_admin(void)
{
	return capable(CAP_SYS_ADMIN);
}

bool rext4_may_resize(void)
{
	return capable(CAP_SYS_RESOURCE);
}
