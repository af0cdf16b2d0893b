// SPDX-License-Identifier: GPL-2.0

//! Mount options: a table of all options of stock ext4, and our own.
//!
//! An option is implemented, or it requests something that is always the case, or something that is
//! not implemented. In the latter cases it is accepted, and a log line says that it has no effect.
//! Unknown options are rejected by the VFS, and options whose promise would not be kept are
//! rejected here.
//!
//! The effective options come from three places, each overriding the previous one: the superblock's
//! defaults (`s_default_mount_opts` and `s_mount_opts`, set by `tune2fs -o` and `tune2fs -E
//! mount_opts`), the options of the mount, and those of each remount.

use crate::{
    format::superblock::{default_options, RawSuper},
    fs::state::{Action, DataMode, Options, Volume},
    kernel_glue::{Journal, JournalTuning, SuperBlock},
};
use kernel::{prelude::*, str::CString};

/// The kind of value that an option takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No value.
    Flag,
    /// A number.
    Number,
    /// A number or no value.
    Either,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any text, or none.
    Text,
}

/// The value of an option.
#[derive(Clone, Copy)]
enum Value<'a> {
    Nothing,
    Number(u32),
    Word(&'a [u8]),
}

impl Value<'_> {
    fn number(&self) -> Result<u32> {
        match self {
            Value::Number(number) => Ok(*number),
            _ => Err(EINVAL),
        }
    }

    fn is(&self, word: &[u8]) -> bool {
        matches!(self, Value::Word(found) if *found == word)
    }
}

/// The effect of an option.
#[derive(Clone, Copy)]
enum Effect {
    /// None: it requests the behavior that is always in effect.
    Always,
    /// None: it is an obsolete option, which stock ext4 also ignores.
    Removed,
    /// None: it requests something that is not implemented.
    NotYet,
    /// The mount is rejected, because the option's promise would not be kept.
    Refused,
    /// Changes the effective options.
    Set(fn(&mut Options, Value<'_>) -> Result),
    /// None if the value is the first of the words; the others are not implemented.
    FirstOnly,
}

struct Row {
    name: &'static str,
    kind: Kind,
    effect: Effect,
}

const fn row(name: &'static str, kind: Kind, effect: Effect) -> Row {
    Row { name, kind, effect }
}

/// Maximum commit interval in seconds, limited by the range of the kernel's timers.
const MOST_SECONDS: u32 = i32::MAX as u32 / 1000;

use Effect::{Always, FirstOnly, NotYet, Refused, Removed, Set};
use Kind::{Either, Flag, Number, Text, Word};

static TABLE: &[Row] = &[
    // Implemented options.
    row(
        "errors",
        Word(&["continue", "remount-ro", "panic"]),
        Set(set_errors),
    ),
    row("norecovery", Flag, Set(set_no_recovery)),
    row("noload", Flag, Set(set_no_recovery)),
    row("abort", Flag, Set(set_abort)),
    row("commit", Number, Set(set_commit)),
    row(
        "min_batch_time",
        Number,
        Set(|options, value| put(&mut options.min_batch_time, value.number()?)),
    ),
    row(
        "max_batch_time",
        Number,
        Set(|options, value| put(&mut options.max_batch_time, value.number()?)),
    ),
    row("barrier", Either, Set(set_barrier)),
    row(
        "nobarrier",
        Flag,
        Set(|options, _| put(&mut options.barrier, false)),
    ),
    row(
        "resuid",
        Number,
        Set(|options, value| put(&mut options.reserve_uid, value.number()?)),
    ),
    row(
        "resgid",
        Number,
        Set(|options, value| put(&mut options.reserve_gid, value.number()?)),
    ),
    row(
        "minixdf",
        Flag,
        Set(|options, _| put(&mut options.minix_df, true)),
    ),
    row(
        "auto_da_alloc",
        Either,
        Set(|options, value| put(&mut options.auto_da_alloc, !matches!(value, Value::Number(0)))),
    ),
    row(
        "noauto_da_alloc",
        Flag,
        Set(|options, _| put(&mut options.auto_da_alloc, false)),
    ),
    row("discard", Flag, Set(|options, _| put(&mut options.discard, true))),
    row(
        "nodiscard",
        Flag,
        Set(|options, _| put(&mut options.discard, false)),
    ),
    row("bsddf", Flag, Set(|options, _| put(&mut options.minix_df, false))),
    row("data", Word(&["ordered", "writeback", "journal"]), Set(set_data)),
    row(
        "journal_async_commit",
        Flag,
        Set(|options, _| put(&mut options.async_commit, true)),
    ),
    row(
        "reflink",
        Kind::Word(&["on", "off"]),
        Set(|options, value| put(&mut options.reflink, value.is(b"on"))),
    ),
    // Options that request the only behaviour there is.
    row("user_xattr", Flag, Always),
    row("acl", Flag, Always),
    row("nogrpid", Flag, Always),
    row("sysvgroups", Flag, Always),
    row("block_validity", Flag, Always),
    row("dioread_nolock", Flag, Always),
    row("noinit_itable", Flag, Always),
    row("nowarn_on_error", Flag, Always),
    row("noquota", Flag, Always),
    row("nombcache", Flag, Always),
    row("no_mbcache", Flag, Always),
    row("no_prefetch_block_bitmaps", Flag, Always),
    row("data_err", Word(&["ignore", "abort"]), FirstOnly),
    // Options that are not implemented.
    row("grpid", Flag, NotYet),
    row("bsdgroups", Flag, NotYet),
    row("nouid32", Flag, NotYet),
    row("debug", Flag, NotYet),
    row("noblock_validity", Flag, NotYet),
    row("delalloc", Flag, NotYet),
    row("nodelalloc", Flag, NotYet),
    row("nodioread_nolock", Flag, NotYet),
    row("dioread_lock", Flag, NotYet),
    row("init_itable", Either, NotYet),
    row("warn_on_error", Flag, NotYet),
    row("stripe", Number, NotYet),
    row("inode_readahead_blks", Number, Set(check_readahead)),
    row("journal_ioprio", Number, Set(check_priority)),
    row("journal_checksum", Flag, NotYet),
    row("nojournal_checksum", Flag, NotYet),
    row("max_dir_size_kb", Number, NotYet),
    row("mb_optimize_scan", Number, NotYet),
    row("debug_want_extra_isize", Number, NotYet),
    row("inlinecrypt", Flag, NotYet),
    row("dax", Word(&["never", "inode"]), FirstOnly),
    row("quota", Flag, NotYet),
    row("usrquota", Flag, NotYet),
    row("grpquota", Flag, NotYet),
    row("prjquota", Flag, NotYet),
    row("usrjquota", Text, NotYet),
    row("grpjquota", Text, NotYet),
    row("jqfmt", Word(&["vfsold", "vfsv0", "vfsv1"]), NotYet),
    // Obsolete options.
    row("oldalloc", Flag, Removed),
    row("orlov", Flag, Removed),
    row("bh", Flag, Removed),
    row("nobh", Flag, Removed),
    row("i_version", Flag, Removed),
    row("mblk_io_submit", Flag, Removed),
    row("nomblk_io_submit", Flag, Removed),
    row("prefetch_block_bitmaps", Flag, Removed),
    row("check", Text, Removed),
    row("nocheck", Flag, Removed),
    row("reservation", Flag, Removed),
    row("noreservation", Flag, Removed),
    row("journal", Number, Removed),
    // Options whose promise would not be kept.
    row("sb", Number, Refused),
    row("journal_dev", Number, Refused),
    row("journal_path", Text, Refused),
    row("test_dummy_encryption", Text, Refused),
];

const _: () = assert!(TABLE.len() <= u128::BITS as usize);

fn put<T>(place: &mut Option<T>, value: T) -> Result {
    *place = Some(value);
    Ok(())
}

fn set_errors(options: &mut Options, value: Value<'_>) -> Result {
    let Value::Word(word) = value else {
        return Err(EINVAL);
    };
    put(&mut options.on_error, Action::of_name(word).ok_or(EINVAL)?)
}

fn set_no_recovery(options: &mut Options, _: Value<'_>) -> Result {
    options.no_recovery = true;
    Ok(())
}

fn set_abort(options: &mut Options, _: Value<'_>) -> Result {
    options.abort = true;
    Ok(())
}

fn set_commit(options: &mut Options, value: Value<'_>) -> Result {
    match value.number()? {
        0 => put(&mut options.commit, DEFAULT_COMMIT),
        seconds @ ..=MOST_SECONDS => put(&mut options.commit, seconds),
        _ => Err(EINVAL),
    }
}

fn set_barrier(options: &mut Options, value: Value<'_>) -> Result {
    put(&mut options.barrier, !matches!(value, Value::Number(0)))
}

fn set_data(options: &mut Options, value: Value<'_>) -> Result {
    let mode = match value {
        _ if value.is(b"ordered") => DataMode::Ordered,
        _ if value.is(b"writeback") => DataMode::Writeback,
        _ => DataMode::Journal,
    };
    put(&mut options.data, mode)
}

fn check_readahead(_: &mut Options, value: Value<'_>) -> Result {
    match value.number()? {
        0 => Ok(()),
        blocks if blocks.is_power_of_two() && blocks <= 1 << 30 => Ok(()),
        _ => Err(EINVAL),
    }
}

fn check_priority(_: &mut Options, value: Value<'_>) -> Result {
    match value.number()? {
        0..=7 => Ok(()),
        _ => Err(EINVAL),
    }
}

/// Parses a number in C notation: decimal, or hexadecimal or octal with a prefix.
fn parse_number(text: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(text).ok()?;
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (text.get(2..)?, 16),
        [b'0', _, ..] => (text.get(1..)?, 8),
        _ => (text, 10),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// Default commit interval in seconds.
const DEFAULT_COMMIT: u32 = 5;
/// Default minimum time in microseconds that a commit waits for other handles.
const DEFAULT_MIN_BATCH: u32 = 0;
/// Default maximum time in microseconds that a commit waits for other handles.
const DEFAULT_MAX_BATCH: u32 = 15000;

impl Options {
    /// Applies one option. Returns false if it is unknown.
    ///
    /// Fails with `EINVAL` for an invalid value, and for an option that is rejected.
    pub(in crate::fs) fn take(&mut self, key: &[u8], text: Option<&[u8]>) -> Result<bool> {
        let Some(number) = TABLE.iter().position(|row| row.name.as_bytes() == key) else {
            return Ok(false);
        };
        let Some(row) = TABLE.get(number) else {
            return Ok(false);
        };
        let parse = |text: &[u8]| parse_number(text).map(Value::Number).ok_or(EINVAL);
        let value = match (row.kind, text) {
            (Flag | Either | Text, None) => Value::Nothing,
            (Number | Either, Some(text)) => parse(text)?,
            (Text, Some(text)) => Value::Word(text),
            (Word(words), Some(text)) if words.iter().any(|word| word.as_bytes() == text) => {
                Value::Word(text)
            }
            _ => return Err(EINVAL),
        };
        match row.effect {
            Set(set) => set(self, value)?,
            Refused => return Err(EINVAL),
            FirstOnly => {
                let first = matches!(row.kind, Word([first, ..]) if value.is(first.as_bytes()));
                if !first {
                    self.without_effect |= 1 << number;
                }
            }
            Removed | NotYet => self.without_effect |= 1 << number,
            Always => (),
        }
        Ok(true)
    }

    /// Applies a comma-separated list of options. Fails with `EINVAL` if one is unknown.
    fn take_list(&mut self, list: &[u8]) -> Result {
        for option in list
            .split(|&byte| byte == b',')
            .filter(|option| !option.is_empty())
        {
            let mut parts = option.splitn(2, |&byte| byte == b'=');
            let key = parts.next().unwrap_or_default();
            if !self.take(key, parts.next())? {
                return Err(EINVAL);
            }
        }
        Ok(())
    }

    /// Returns the default options of a superblock.
    pub(in crate::fs) fn of_superblock(sb: &SuperBlock<Volume>, raw: &RawSuper) -> Options {
        let bits = raw.default_mount_opts.get();
        let mut options = Options {
            on_error: Some(Action::of_number(raw.errors.get().into())),
            ..Options::default()
        };
        options.data = match bits & default_options::DATA {
            default_options::DATA_JOURNAL => Some(DataMode::Journal),
            default_options::DATA_WRITEBACK => Some(DataMode::Writeback),
            _ => None,
        };
        options.discard = (bits & default_options::DISCARD != 0).then_some(true);
        options.barrier = (bits & default_options::NO_BARRIER != 0).then_some(false);
        let len = raw.mount_opts.iter().position(|&byte| byte == 0);
        let list = raw
            .mount_opts
            .get(..len.unwrap_or(raw.mount_opts.len()))
            .unwrap_or_default();
        let mut with_list = options;
        if with_list.take_list(list).is_err() {
            pr_warn!(
                "{}: the mount options in the superblock are ignored, because one of them is unknown\n",
                sb.name()
            );
            return options;
        }
        with_list
    }

    /// Combines these options with `below`, which applies where nothing is specified here.
    #[must_use]
    pub(in crate::fs) fn over(self, below: Options) -> Options {
        Options {
            no_recovery: self.no_recovery || below.no_recovery,
            on_error: self.on_error.or(below.on_error),
            abort: self.abort,
            commit: self.commit.or(below.commit),
            min_batch_time: self.min_batch_time.or(below.min_batch_time),
            max_batch_time: self.max_batch_time.or(below.max_batch_time),
            barrier: self.barrier.or(below.barrier),
            reserve_uid: self.reserve_uid.or(below.reserve_uid),
            reserve_gid: self.reserve_gid.or(below.reserve_gid),
            minix_df: self.minix_df.or(below.minix_df),
            auto_da_alloc: self.auto_da_alloc.or(below.auto_da_alloc),
            data: self.data.or(below.data),
            async_commit: self.async_commit.or(below.async_commit),
            discard: self.discard.or(below.discard),
            reflink: self.reflink.or(below.reflink),
            without_effect: self.without_effect,
        }
    }

    /// Checks that these options can be in effect together. Fails with `EINVAL`.
    pub(in crate::fs) fn check(&self, sb: &SuperBlock<Volume>, read_only: bool) -> Result {
        let data = self.data.unwrap_or(DataMode::Ordered);
        if self.async_commit == Some(true) && data == DataMode::Ordered {
            pr_err!(
                "{}: journal_async_commit and data=ordered exclude each other\n",
                sb.name()
            );
            return Err(EINVAL);
        }
        if data == DataMode::Journal && !read_only {
            pr_err!("{}: data=journal is not supported; use data=ordered\n", sb.name());
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Logs each specified option that has no effect.
    pub(in crate::fs) fn log_without_effect(&self, sb: &SuperBlock<Volume>) {
        for (number, row) in TABLE.iter().enumerate() {
            if self.without_effect & 1 << number == 0 {
                continue;
            }
            match row.effect {
                Removed => pr_warn!(
                    "{}: the mount option {} is obsolete and ignored\n",
                    sb.name(),
                    row.name
                ),
                _ => pr_info!("{}: the mount option {} has no effect\n", sb.name(), row.name),
            }
        }
        if self.data == Some(DataMode::Writeback) {
            pr_info!(
                "{}: data=writeback has no effect; data is written as with data=ordered\n",
                sb.name()
            );
        }
    }

    /// Applies these options to the journal.
    pub(in crate::fs) fn tune(&self, journal: &Journal) {
        journal.tune(&JournalTuning {
            commit_seconds: self.commit.unwrap_or(DEFAULT_COMMIT),
            min_batch_time: self.min_batch_time.unwrap_or(DEFAULT_MIN_BATCH),
            max_batch_time: self.max_batch_time.unwrap_or(DEFAULT_MAX_BATCH),
            barrier: self.has_barrier(),
        });
    }

    /// Calls back with the effective options that differ from the defaults.
    pub(in crate::fs) fn show(&self, action: Action, out: &mut dyn FnMut(&CStr)) -> Result {
        let mut number = |name: &str, value: Option<u32>, default: u32| -> Result {
            match value {
                Some(value) if value != default => {
                    out(&CString::try_from_fmt(fmt!("{name}={value}"))?);
                    Ok(())
                }
                _ => Ok(()),
            }
        };
        number("resuid", self.reserve_uid, 0)?;
        number("resgid", self.reserve_gid, 0)?;
        number("commit", self.commit, DEFAULT_COMMIT)?;
        number("min_batch_time", self.min_batch_time, DEFAULT_MIN_BATCH)?;
        number("max_batch_time", self.max_batch_time, DEFAULT_MAX_BATCH)?;
        for (is, option) in [
            (self.no_recovery, c"norecovery"),
            (!self.has_barrier(), c"nobarrier"),
            (self.minix_df == Some(true), c"minixdf"),
            (!self.has_auto_da_alloc(), c"noauto_da_alloc"),
            (self.discard == Some(true), c"discard"),
            (self.reflink == Some(true), c"reflink=on"),
            (self.reflink == Some(false), c"reflink=off"),
        ] {
            if is {
                out(option);
            }
        }
        out(action.option());
        Ok(())
    }
}
