// SPDX-License-Identifier: GPL-2.0

//! `rext4 scrub`: has the kernel check, or check and repair, the reverse map and the reference counts of a mounted volume.
//!
//! The map is compared with all inodes, the counts with the map: so there is one scan for both, and the map comes first.
//! For each, one call does it all and returns at its end, so it is made by a thread of its own. Meanwhile the main thread asks for
//! the progress and draws it, and turns the first interrupt into a request to cancel; the call then returns and tells
//! that it was ended. What was found is printed as a few lines or as one JSON object, and said by the exit status, which
//! is that of e2fsck.

use crate::{
    format::Tree,
    ioctl::{self, ScrubMetadata},
    status::Status,
};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::io::Errno;
use serde::Serialize;
use std::{
    fs::File,
    io::{stderr, stdout, IsTerminal, Write},
    path::PathBuf,
    sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender},
    sync::Arc,
    time::{Duration, Instant},
};

/// How often the progress is asked for.
const TICK: Duration = Duration::from_millis(200);

/// Arguments of `rext4 scrub`.
#[derive(clap::Args)]
pub struct Args {
    /// Rebuild the trees that are wrong
    #[arg(long)]
    repair: bool,
    /// Rebuild all trees, including those that are right
    #[arg(long, requires = "repair")]
    force: bool,
    /// Look only at this tree
    #[arg(long, value_enum)]
    tree: Option<Tree>,
    /// Memory limit for collected records; the rest is spilled to a tmpfs file [default: module parameter rebuild_memory]
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(1..))]
    memory: Option<u32>,
    /// Look only at this region
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..u32::MAX as i64))]
    region: Option<u32>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    /// Any file or directory of the volume
    mount: PathBuf,
}

/// How a call ended: its answer, and how long it took.
type Ended = Result<(ScrubMetadata, Duration), Errno>;

/// What the main thread waits for.
enum Event {
    Interrupted,
    Ended(Ended),
}

/// The answer as it is printed in JSON.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    found: ScrubMetadata,
    /// It was wrong.
    corrupt: bool,
    /// It was wrong, and is right now.
    repaired: bool,
    preen: bool,
    xfail: bool,
    xcorrupt: bool,
    incomplete: bool,
    warning: bool,
    no_repair_needed: bool,
    /// Records by the time of all phases.
    records_per_second: f64,
    /// Milliseconds for which writers were held up at most.
    stall_ms: f64,
    /// Seconds that the call took, as seen from here.
    seconds: f64,
    /// The same of the reference counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    refcount: Option<Box<Report>>,
}

impl Report {
    fn of(found: ScrubMetadata, args: &Args, took: Duration) -> Report {
        let has = |flag| found.flags & flag != 0;
        let corrupt = has(ioctl::OFLAG_CORRUPT);
        let busy = [found.scan_ns, found.check_ns, found.load_ns, found.reap_ns]
            .iter()
            .fold(0u64, |sum, part| sum.saturating_add(*part));
        let records_per_second = match busy {
            0 => 0.0,
            busy => found.records as f64 * 1e9 / busy as f64,
        };
        Report {
            found,
            corrupt,
            // The call succeeds only when all that was to be repaired is.
            repaired: corrupt && args.repair && found.rebuilt_regions >= found.bad_regions,
            preen: has(ioctl::OFLAG_PREEN),
            xfail: has(ioctl::OFLAG_XFAIL),
            xcorrupt: has(ioctl::OFLAG_XCORRUPT),
            incomplete: has(ioctl::OFLAG_INCOMPLETE),
            warning: has(ioctl::OFLAG_WARNING),
            no_repair_needed: has(ioctl::OFLAG_NO_REPAIR_NEEDED),
            records_per_second,
            stall_ms: found.stall_ns as f64 / 1e6,
            seconds: took.as_secs_f64(),
            refcount: None,
        }
    }

    fn status(&self) -> Status {
        if self.corrupt {
            if self.repaired {
                Status::Repaired
            } else {
                Status::Corrupt
            }
        } else if self.xfail || self.xcorrupt || self.incomplete {
            // Nothing wrong was seen, but not all was.
            Status::Failed
        } else {
            Status::Clean
        }
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let found = &self.found;
        let verdict = match (self.corrupt, self.repaired, self.found.rebuilt_regions) {
            (true, true, rebuilt) => format!("{} regions were wrong, {rebuilt} rebuilt", found.bad_regions),
            (true, false, _) => format!("{} regions are wrong", found.bad_regions),
            (false, _, 0) => "clean".to_string(),
            (false, _, rebuilt) => format!("clean; {rebuilt} regions rebuilt all the same"),
        };
        let counts = found.kind == ioctl::TYPE_REFCOUNT;
        let what = if counts { "reference counts" } else { "reverse map" };
        writeln!(out, "{what}: {verdict}")?;
        for (is, what) in [
            (self.xfail, "some inodes could not be read"),
            (self.xcorrupt, "some inodes are damaged; run e2fsck"),
            (self.incomplete, "not all could be looked at"),
            (self.preen, "it could be better; a repair would make it so"),
            (self.warning, "something is odd; see the kernel's log"),
        ] {
            if is {
                writeln!(out, "note: {what}")?;
            }
        }
        let seconds = |ns: u64| ns as f64 / 1e9;
        writeln!(
            out,
            "{} inodes, {} records ({:.0}/s), {} blocks written, {} changes taken in, {} KiB of memory",
            found.inodes,
            found.records,
            self.records_per_second,
            found.blocks,
            found.live_updates,
            found.memory.div_ceil(1024),
        )?;
        if found.spilled > 0 {
            writeln!(
                out,
                "{} KiB went to a file in tmpfs",
                found.spilled.div_ceil(1024)
            )?;
        }
        writeln!(
            out,
            "{:.2} s: scan {:.2}, compare {:.2}, rebuild {:.2}, free {:.2}; writers held up for {:.2} ms at most",
            self.seconds,
            seconds(found.scan_ns),
            seconds(found.check_ns),
            seconds(found.load_ns),
            seconds(found.reap_ns),
            self.stall_ms,
        )
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<Status> {
    let volume = Arc::new(ioctl::open_mount(&args.mount)?);
    let (sender, events) = channel();
    let interrupted = sender.clone();
    // Nobody listens any more once the call has ended, and then there is nothing to cancel.
    ctrlc::set_handler(move || drop(interrupted.send(Event::Interrupted)))
        .context("cannot catch interrupts")?;
    let mut reports = Vec::new();
    for (tree, kind) in [
        (Tree::Rmap, ioctl::TYPE_RMAP),
        (Tree::Refcount, ioctl::TYPE_REFCOUNT),
    ] {
        if args.tree.is_none_or(|only| only == tree) {
            reports.push(look(&volume, args, kind, &sender, &events)?);
        }
    }
    let status = worst(reports.iter().map(Report::status));
    let mut out = stdout().lock();
    if args.json {
        let mut reports = reports.into_iter();
        if let Some(mut first) = reports.next() {
            first.refcount = reports.next().map(Box::new);
            serde_json::to_writer(&mut out, &first)?;
        }
        writeln!(out)?;
    } else {
        for report in &reports {
            report.print(&mut out)?;
        }
    }
    Ok(status)
}

/// What is to be said of all: the worst of it.
fn worst(all: impl Iterator<Item = Status>) -> Status {
    all.max_by_key(|status| match status {
        Status::Clean => 0,
        Status::Repaired => 1,
        Status::Failed => 2,
        Status::Corrupt => 3,
        Status::Usage => 4,
    })
    .unwrap_or(Status::Clean)
}

/// Makes one call.
fn look(
    volume: &Arc<File>,
    args: &Args,
    kind: u32,
    sender: &Sender<Event>,
    events: &Receiver<Event>,
) -> Result<Report> {
    let mut request = ScrubMetadata {
        kind,
        region: args.region.unwrap_or(ioctl::ALL_REGIONS),
        memory_limit: args.memory.unwrap_or(0),
        ..ScrubMetadata::default()
    };
    if args.repair {
        request.flags |= ioctl::IFLAG_REPAIR;
    }
    if args.force {
        request.flags |= ioctl::IFLAG_FORCE_REBUILD;
    }
    let callers = Arc::clone(volume);
    let sender = sender.clone();
    std::thread::spawn(move || {
        // The call, without what it takes to have a thread and to hear of its end.
        let since = Instant::now();
        let ended = ioctl::scrub_metadata(&*callers, &mut request).map(|()| (request, since.elapsed()));
        drop(sender.send(Event::Ended(ended)));
    });
    let (ended, took) = wait(volume, events)?.map_err(explain)?;
    Ok(Report::of(ended, args, took))
}

/// Waits for the end of the call, drawing its progress if there is somebody to see it.
fn wait(volume: &File, events: &Receiver<Event>) -> Result<Ended> {
    let bar = stderr().is_terminal().then(new_bar);
    let mut cancelled = false;
    let ended = loop {
        match events.recv_timeout(TICK) {
            Ok(Event::Ended(ended)) => break ended,
            Ok(Event::Interrupted) => cancelled = true,
            Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the thread that made the call is gone"),
        }
        if cancelled {
            // Again at each tick: the first interrupt may come before the kernel has begun.
            match ioctl::scrub_cancel(volume) {
                Ok(()) | Err(Errno::NOENT | Errno::INTR) => (),
                Err(error) => return Err(error).context("cannot cancel"),
            }
        } else if let Some(bar) = &bar {
            draw(bar, volume);
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(ended)
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{prefix:8} [{bar:40}] {pos}/{len} {msg} {elapsed}");
    // A template that does not parse costs the looks, not the scrub.
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn draw(bar: &ProgressBar, volume: &File) {
    // What cannot be asked is not drawn; the call itself tells what is wrong.
    let Ok(progress) = ioctl::scrub_progress(volume) else {
        return;
    };
    let (phase, what) = match progress.phase {
        ioctl::PHASE_SCAN => ("scan", "inodes"),
        ioctl::PHASE_CHECK => ("compare", "regions"),
        ioctl::PHASE_LOAD => ("rebuild", "regions"),
        ioctl::PHASE_REAP => ("free", "regions"),
        ioctl::PHASE_IDLE => return,
        _ => ("busy", ""),
    };
    let whose = if progress.flags & ioctl::PROGRESS_BACKGROUND != 0 {
        ", begun by the mount"
    } else {
        ""
    };
    bar.set_prefix(phase);
    bar.set_length(progress.total);
    bar.set_position(progress.done.min(progress.total));
    bar.set_message(format!("{what}, {} records{whose}", progress.records));
}

/// Says of an error what it means here.
fn explain(error: Errno) -> anyhow::Error {
    let what = match error {
        Errno::PERM => "only root may do this",
        Errno::INVAL => "the volume has no such region, or the kernel does not know this kind of check",
        Errno::NOTTY => "not a volume that rext4 has mounted",
        Errno::OPNOTSUPP => "the volume has no reverse map in use",
        Errno::ROFS => "the volume is mounted read-only",
        Errno::BUSY => "another check or repair is running",
        Errno::INTR | Errno::CANCELED => "ended before it was done; nothing was changed",
        Errno::UCLEAN => "the inodes themselves are damaged; run e2fsck",
        _ => "the scrub failed",
    };
    anyhow::Error::new(error).context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(flags: u32, bad: u32, rebuilt: u32, repair: bool) -> Report {
        let found = ScrubMetadata {
            flags,
            bad_regions: bad,
            rebuilt_regions: rebuilt,
            records: 1000,
            scan_ns: 400_000_000,
            check_ns: 100_000_000,
            stall_ns: 1_500_000,
            ..ScrubMetadata::default()
        };
        let args = Args {
            repair,
            force: false,
            tree: None,
            memory: None,
            region: None,
            json: false,
            mount: PathBuf::new(),
        };
        Report::of(found, &args, Duration::from_secs(1))
    }

    #[test]
    fn statuses() {
        assert_eq!(report(0, 0, 0, false).status(), Status::Clean);
        assert_eq!(
            report(ioctl::OFLAG_NO_REPAIR_NEEDED, 0, 0, true).status(),
            Status::Clean
        );
        assert_eq!(
            report(ioctl::OFLAG_CORRUPT, 2, 0, false).status(),
            Status::Corrupt
        );
        assert_eq!(
            report(ioctl::OFLAG_CORRUPT, 2, 2, true).status(),
            Status::Repaired
        );
        assert_eq!(report(ioctl::OFLAG_CORRUPT, 2, 1, true).status(), Status::Corrupt);
        assert_eq!(
            report(ioctl::OFLAG_INCOMPLETE, 0, 0, false).status(),
            Status::Failed
        );
    }

    #[test]
    fn json_has_every_number() {
        let json = serde_json::to_value(report(ioctl::OFLAG_CORRUPT, 2, 2, true)).unwrap();
        assert_eq!(json["type"], 0);
        assert_eq!(json["bad_regions"], 2);
        assert_eq!(json["records_per_second"], 2000.0);
        assert_eq!(json["stall_ms"], 1.5);
        assert_eq!(json["repaired"], true);
        assert!(json.get("reserved").is_none());
    }

    #[test]
    fn text_names_the_regions() {
        let mut text = Vec::new();
        report(ioctl::OFLAG_CORRUPT, 2, 0, false)
            .print(&mut text)
            .unwrap();
        assert!(String::from_utf8(text)
            .unwrap()
            .starts_with("reverse map: 2 regions are wrong\n"));
    }
}
