// SPDX-License-Identifier: GPL-2.0

//! Registering a file system type, mounting and unmounting its volumes, and allocating its inodes.
//!
//! Sequence of a mount: `init_fs_context` creates the options, `parse_param` sets them, `get_tree`
//! opens the device and calls [`fill_super`], which calls [`FileSystem::open`] to read the volume,
//! attaches the result to the superblock, and then calls [`FileSystem::start`], which returns the
//! root directory.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/fs_context.h`](srctree/include/linux/fs_context.h)

use super::{
    bindings,
    inode::Whole,
    operations::{FileSystem, Operations},
    super_block::{stop, wait_until_unused, Mounted, NewSuperBlock, SuperBlock},
    vfs::Tables,
};
use core::{marker::PhantomData, ptr};
use kernel::{
    error::{from_result, to_result},
    prelude::*,
    str::CStr,
    sync::atomic::{Atomic, Full, Release},
};

/// A registered file system type; unregistered on drop.
///
/// # Invariants
///
/// There is at most one at a time, so all inodes come from its cache and have its type.
pub(crate) struct Registration<V: FileSystem> {
    /// The registered types: one with its own name, and optionally one with another name.
    fs_types: [*mut bindings::file_system_type; 2],
    cache: *mut bindings::kmem_cache,
    volumes: PhantomData<V>,
}

// SAFETY: The registration can only be dropped, which is permitted on any thread.
unsafe impl<V: FileSystem> Send for Registration<V> {}
// SAFETY: A shared registration provides nothing.
unsafe impl<V: FileSystem> Sync for Registration<V> {}

/// The slab cache for inodes.
static mut INODES: *mut bindings::kmem_cache = ptr::null_mut();

/// A [`Registration`] exists, or is being created.
static REGISTERED: Atomic<bool> = Atomic::new(false);

impl<V: Operations> Registration<V> {
    /// Registers the type until the module is unloaded, and with `other` under that name as well.
    ///
    /// A volume can be mounted as soon as one name is registered, and from then on loading the
    /// module must not fail. The other name, which stock ext4 may already have registered,
    /// therefore comes first. If its own name is then found to be taken, the type is registered
    /// only under the other one.
    ///
    /// Fails with `EBUSY` if a type with this name, or another registration, exists.
    pub(crate) fn new(module: &'static ThisModule, other: Option<&'static CStr>) -> Result<Self> {
        if REGISTERED.xchg(true, Full) {
            return Err(EBUSY);
        }
        // SAFETY: The constructor only accesses the `inode` at the start of a `Whole`.
        let cache = unsafe {
            bindings::rext4_inode_cache(
                c"rext4_inode".as_char_ptr().cast(),
                size_of::<Whole<V>>() as u32,
                align_of::<Whole<V>>() as u32,
                Some(construct),
            )
        };
        if cache.is_null() {
            REGISTERED.store(false, Release);
            return Err(ENOMEM);
        }
        // SAFETY: No volume can be mounted before the type is registered, so no one reads this yet,
        // and by the type invariant no one else writes it.
        unsafe { INODES = cache };
        // INVARIANT: `REGISTERED` was not set before.
        let mut registration = Registration {
            fs_types: [ptr::null_mut(); 2],
            cache,
            volumes: PhantomData,
        };
        if let Some(other) = other {
            registration.add(module, other, 1)?;
        }
        match registration.add(module, V::NAME, 0) {
            Err(error) if other.is_none() => Err(error),
            _ => Ok(registration),
        }
    }

    /// Registers the type under one name.
    fn add(&mut self, module: &'static ThisModule, name: &'static CStr, slot: usize) -> Result {
        let fs_type = bindings::file_system_type {
            name: name.as_char_ptr().cast(),
            fs_flags: (bindings::FS_REQUIRES_DEV | bindings::FS_ALLOW_IDMAP) as i32,
            init_fs_context: Some(init_fs_context::<V>),
            kill_sb: Some(kill_sb::<V>),
            owner: module.as_ptr(),
            ..pin_init::zeroed()
        };
        let kept = self.fs_types.get_mut(slot).ok_or(EINVAL)?;
        // SAFETY: The location belongs to the module, and no one accesses it before the type is
        // registered. It is static, and the type is unregistered on drop, before the module is
        // unloaded.
        unsafe {
            let place = bindings::rext4_fs_type(slot > 0);
            place.write(fs_type);
            to_result(bindings::register_filesystem(place)).inspect_err(|_| {
                pr_err!("the file system type {} is registered already\n", name);
            })?;
            *kept = place;
        }
        Ok(())
    }
}

impl<V: FileSystem> Drop for Registration<V> {
    fn drop(&mut self) {
        // SAFETY: The module is being unloaded, or no name was registered, so no volume of the type
        // is mounted. This waits for inodes that are freed by RCU.
        unsafe {
            for fs_type in self.fs_types {
                if !fs_type.is_null() {
                    bindings::unregister_filesystem(fs_type);
                }
            }
            super::Hooks::flush();
            bindings::rcu_barrier();
            bindings::kmem_cache_destroy(self.cache);
        }
        REGISTERED.store(false, Release);
    }
}

/// Initializes the part of a slab object that stays initialized between uses.
///
/// # Safety
///
/// Must be called as the slab allocator calls it: with a new object of the inode cache.
unsafe extern "C" fn construct(object: *mut c_void) {
    // SAFETY: A `Whole` starts with its inode.
    unsafe { bindings::inode_init_once(object.cast()) };
}

/// # Safety
///
/// Must be called as the VFS calls it: with a context of our type.
unsafe extern "C" fn init_fs_context<V: Operations>(fc: *mut kernel::bindings::fs_context) -> c_int {
    let fc: *mut bindings::fs_context = fc.cast();
    from_result(|| {
        let options = KBox::new(V::Options::default(), GFP_KERNEL)?;
        // SAFETY: The context is ours to fill.
        unsafe {
            (*fc).fs_private = KBox::into_raw(options).cast();
            (*fc).ops = Contexts::<V>::OPS;
        }
        Ok(0)
    })
}

struct Contexts<V>(PhantomData<V>);

impl<V: Operations> Contexts<V> {
    const OPS: &'static bindings::fs_context_operations = &bindings::fs_context_operations {
        free: Some(Self::free),
        dup: None,
        parse_param: Some(Self::parse_param),
        parse_monolithic: None,
        get_tree: Some(Self::get_tree),
        reconfigure: Some(Self::reconfigure),
    };

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a context that [`init_fs_context`] filled.
    unsafe extern "C" fn free(fc: *mut bindings::fs_context) {
        // SAFETY: `fs_private` is null or the box set by `init_fs_context`, and not used after
        // this.
        unsafe {
            let options = (*fc).fs_private.cast::<V::Options>();
            if !options.is_null() {
                drop(KBox::from_raw(options));
            }
        }
    }

    /// # Safety
    ///
    /// As for [`Self::free`], with a live parameter.
    unsafe extern "C" fn parse_param(
        fc: *mut bindings::fs_context,
        param: *mut bindings::fs_parameter,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The context holds our options, and no one else uses them.
            let options = unsafe { &mut *(*fc).fs_private.cast::<V::Options>() };
            // SAFETY: The key is a null-terminated string, and so is the value if the type says so.
            let (key, value) = unsafe {
                let string = (*param).__bindgen_anon_1.string;
                let is_string = (*param).type_() == bindings::fs_value_type_fs_value_is_string;
                (
                    CStr::from_char_ptr((*param).key.cast()),
                    (is_string && !string.is_null()).then(|| CStr::from_char_ptr(string.cast())),
                )
            };
            if V::option(options, key, value)? {
                Ok(0)
            } else {
                // The VFS checks whether it knows the option itself, and otherwise rejects it by
                // name.
                Ok(-(bindings::ENOPARAM as c_int))
            }
        })
    }

    /// # Safety
    ///
    /// As for [`Self::free`].
    unsafe extern "C" fn get_tree(fc: *mut bindings::fs_context) -> c_int {
        // SAFETY: The VFS calls `fill_super` with this context.
        unsafe { bindings::get_tree_bdev(fc, Some(fill_super::<V>)) }
    }

    /// # Safety
    ///
    /// As for [`Self::free`], for a mounted volume.
    unsafe extern "C" fn reconfigure(fc: *mut bindings::fs_context) -> c_int {
        from_result(|| {
            // SAFETY: The context refers to the root of one of our mounted volumes and holds our
            // options.
            let (sb, options, flags) = unsafe {
                let sb = (*(*fc).root).d_sb;
                (
                    SuperBlock::<V>::from_ptr(sb),
                    &*(*fc).fs_private.cast::<V::Options>(),
                    (*fc).sb_flags,
                )
            };
            let read_only = flags as usize & bindings::REXT4_SB_RDONLY != 0;
            if read_only {
                // Freeing these inodes needs the journal.
                sb.mounted().completions.release();
            }
            sb.volume()?.reconfigure(sb, options, read_only)?;
            Ok(0)
        })
    }
}

/// # Safety
///
/// Must be called as the VFS calls it: with a new superblock of our type and the context it is made
/// for.
unsafe extern "C" fn fill_super<V: Operations>(
    sb: *mut bindings::super_block,
    fc: *mut bindings::fs_context,
) -> c_int {
    from_result(|| {
        // SAFETY: The superblock is of `V`'s type; `kill_sb` drops this before the superblock is
        // freed.
        let mounted = unsafe { Mounted::<V>::new(sb) }?;
        // SAFETY: The superblock is new and ours to initialize. From here on, `kill_sb` frees
        // `s_fs_info`.
        unsafe {
            (*sb).s_fs_info = KBox::into_raw(mounted).cast();
            (*sb).s_op = Tables::<V>::SUPER;
            (*sb).s_export_op = ptr::from_ref(Tables::<V>::EXPORT).cast();
            (*sb).s_xattr = Tables::<V>::ATTRIBUTES.as_ptr().cast();
            (*sb).s_magic = V::MAGIC as usize;
            // The VFS then evaluates access control lists, and leaves applying the umask to
            // `Inherited::new`.
            (*sb).s_flags |= bindings::REXT4_SB_POSIXACL;
        }
        // SAFETY: The context holds our options; the superblock is of our type.
        let (options, shared) = unsafe {
            (
                &*(*fc).fs_private.cast::<V::Options>(),
                SuperBlock::<V>::from_ptr(sb),
            )
        };
        // SAFETY: The VFS has created the superblock for this call, and opened the device for it.
        let mut new = unsafe { NewSuperBlock::new(shared) };
        let opened = V::open(&mut new, options).inspect_err(|_| wait_until_unused(shared))?;
        shared.mounted().volume.populate(opened);
        let root = shared
            .volume()?
            .start(shared)
            .and_then(|root| root.into_raw_of(shared));
        let root = root.inspect_err(|_| stop(shared))?;
        // SAFETY: This takes the reference to the root, also when it fails.
        let dentry = unsafe { bindings::d_make_root(root) };
        if dentry.is_null() {
            stop(shared);
            return Err(ENOMEM);
        }
        // SAFETY: The superblock is ours to initialize.
        unsafe { (*sb).s_root = dentry };
        Ok(0)
    })
}

/// # Safety
///
/// Must be called as the VFS calls it: when the last mount of the superblock went, or filling it
/// failed.
unsafe extern "C" fn kill_sb<V: FileSystem>(sb: *mut bindings::super_block) {
    // SAFETY: The volume is dropped after everything that could access it; `s_fs_info` is null or
    // the box set by `fill_super`.
    unsafe {
        bindings::kill_block_super(sb);
        let mounted = (*sb).s_fs_info.cast::<Mounted<V>>();
        (*sb).s_fs_info = ptr::null_mut();
        if !mounted.is_null() {
            drop(KBox::from_raw(mounted));
        }
    }
}

/// Allocates an inode.
///
/// # Safety
///
/// Must be called as the VFS calls it: with a superblock of our type.
pub(super) unsafe extern "C" fn alloc_inode<V: FileSystem>(
    sb: *mut bindings::super_block,
) -> *mut bindings::inode {
    // SAFETY: The cache exists as long as the type is registered.
    let whole = unsafe { bindings::rext4_inode_alloc(sb, INODES) }.cast::<Whole<V>>();
    if !whole.is_null() {
        // SAFETY: The object is new, and contains nothing that must be dropped. The superblock is
        // live and of our type.
        unsafe {
            Whole::init(whole);
            SuperBlock::<V>::from_ptr(sb).mounted().add_inode();
        }
    }
    whole.cast()
}

/// Drops the file system's data of an inode. Unlike [`free_inode`], this may sleep.
///
/// # Safety
///
/// Must be called as the VFS calls it: with an inode of [`alloc_inode`] that was evicted, or whose
/// making failed.
pub(super) unsafe extern "C" fn destroy_inode<V: FileSystem>(inode: *mut bindings::inode) {
    // SAFETY: The data was initialized by `alloc_inode`. No reference is left, and RCU readers do
    // not access the data. Unmounting waits for the inode, so the superblock is live until it is no
    // longer counted; the VFS does not access it after this.
    unsafe {
        let sb = (*inode).i_sb;
        Whole::drop_data(inode.cast::<Whole<V>>());
        SuperBlock::<V>::from_ptr(sb).mounted().remove_inode();
    }
}

/// Frees an inode after an RCU grace period. Runs as an RCU callback, which must not sleep.
///
/// # Safety
///
/// Must be called as the VFS calls it: with an inode of [`alloc_inode`] for which [`destroy_inode`]
/// ran.
pub(super) unsafe extern "C" fn free_inode(inode: *mut bindings::inode) {
    // SAFETY: The object came from this cache, is not in use, and contains nothing that must be
    // dropped.
    unsafe { bindings::kmem_cache_free(INODES, inode.cast()) };
}
