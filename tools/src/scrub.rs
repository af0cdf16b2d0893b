// SPDX-License-Identifier: GPL-2.0

//! `rext4 scrub`: checks, or checks and repairs, the metadata that the kernel module keeps for a
//! mounted volume.
//!
//! One ioctl is issued for each scrub type, in the order of [`TYPES`]. It returns when the check
//! has ended, so it runs in a separate thread. Meanwhile the main thread polls and draws the
//! progress, and turns the first interrupt into a request to cancel; the ioctl then returns the
//! results so far. The findings are printed as a few lines of text or as a JSON object, and the
//! exit status is that of e2fsck.

use crate::{
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

/// Interval at which the progress is polled.
const TICK: Duration = Duration::from_millis(200);

/// A scrub type of the kernel.
struct ScrubType {
    /// Its number in the ioctl.
    number: u32,
    /// Its name in JSON.
    name: &'static str,
    /// Its name in messages.
    title: &'static str,
    /// The option's value that selects it.
    option: Type,
    /// The metadata that it compares with.
    witness: &'static str,
}

/// The scrub types as values of the option.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Type {
    /// The inode bitmaps, and the counts of inodes and directories
    InodeBitmap,
    /// The block bitmaps and free counts
    Bitmap,
    /// The reverse map: owners of blocks
    Rmap,
    /// The reference counts of shared blocks
    Refcount,
    /// The counts of blocks of inodes
    Inode,
    /// The link counts
    Links,
}

/// All scrub types, each after those that it depends on.
const TYPES: [ScrubType; 6] = [
    ScrubType {
        number: ioctl::TYPE_INODE_BITMAP,
        name: "inode-bitmap",
        title: "inode bitmaps",
        option: Type::InodeBitmap,
        witness: "inodes",
    },
    ScrubType {
        number: ioctl::TYPE_BITMAP,
        name: "bitmap",
        title: "block bitmaps",
        option: Type::Bitmap,
        witness: "inodes",
    },
    ScrubType {
        number: ioctl::TYPE_RMAP,
        name: "rmap",
        title: "reverse map",
        option: Type::Rmap,
        witness: "inodes",
    },
    ScrubType {
        number: ioctl::TYPE_REFCOUNT,
        name: "refcount",
        title: "reference counts",
        option: Type::Refcount,
        witness: "reverse map",
    },
    ScrubType {
        number: ioctl::TYPE_INODE,
        name: "inode",
        title: "block counts of inodes",
        option: Type::Inode,
        witness: "mappings",
    },
    ScrubType {
        number: ioctl::TYPE_LINKS,
        name: "links",
        title: "link counts",
        option: Type::Links,
        witness: "directories",
    },
];

/// Arguments of `rext4 scrub`.
#[derive(clap::Args)]
pub struct Args {
    /// Repair what is wrong
    #[arg(long)]
    repair: bool,
    /// Rebuild all trees, including those that are right
    #[arg(long, requires = "repair")]
    force: bool,
    /// Check only this type of metadata
    #[arg(long = "type", visible_alias = "tree", value_name = "TYPE", value_enum)]
    only: Option<Type>,
    /// Memory limit for collected records; the rest is spilled to a tmpfs file [default: module
    /// parameter rebuild_memory]
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

/// A completed ioctl: its results, its error, and its duration.
struct Ended {
    found: ScrubMetadata,
    outcome: Result<(), Errno>,
    took: Duration,
}

/// An event that the main thread waits for.
enum Event {
    Interrupted,
    Ended(Ended),
}

/// The results of one scrub type, as printed in JSON.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    found: ScrubMetadata,
    /// It was wrong.
    corrupt: bool,
    /// It was wrong and has been repaired.
    repaired: bool,
    preen: bool,
    xfail: bool,
    xcorrupt: bool,
    incomplete: bool,
    no_repair_needed: bool,
    /// Records per second, over the time of all phases.
    records_per_second: f64,
    /// Maximum number of milliseconds for which writers were stopped.
    stall_ms: f64,
    /// Duration of the ioctl in seconds, as measured here.
    seconds: f64,
    /// The error that the ioctl returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    kind: &'static ScrubType,
}

impl Report {
    fn of(kind: &'static ScrubType, ended: &Ended, args: &Args) -> Report {
        let Ended { found, outcome, took } = *ended;
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
            repaired: corrupt
                && args.repair
                && outcome.is_ok()
                && found.failed_regions == 0
                && found.rebuilt_regions >= found.bad_regions,
            preen: has(ioctl::OFLAG_PREEN),
            xfail: has(ioctl::OFLAG_XFAIL),
            xcorrupt: has(ioctl::OFLAG_XCORRUPT),
            incomplete: has(ioctl::OFLAG_INCOMPLETE),
            no_repair_needed: has(ioctl::OFLAG_NO_REPAIR_NEEDED),
            records_per_second,
            stall_ms: found.stall_ns as f64 / 1e6,
            seconds: took.as_secs_f64(),
            error: outcome.err().map(|error| format!("{:#}", explain(error))),
            kind,
        }
    }

    /// Adds what an earlier call found and repaired to the report of a later one of the same type.
    fn after(mut self, earlier: &Report) -> Report {
        self.corrupt |= earlier.corrupt;
        self.repaired = (self.repaired || self.found.flags & ioctl::OFLAG_CORRUPT == 0)
            && (earlier.repaired || !earlier.corrupt)
            && self.corrupt;
        self.found.bad_regions += earlier.found.bad_regions;
        self.found.rebuilt_regions += earlier.found.rebuilt_regions;
        self.seconds += earlier.seconds;
        self
    }

    fn status(&self) -> Status {
        if self.xcorrupt || self.corrupt && !self.repaired {
            Status::Corrupt
        } else if self.xfail || self.incomplete || self.error.is_some() {
            // No problem that was found remains, but not everything was checked.
            Status::Failed
        } else if self.corrupt {
            Status::Repaired
        } else {
            Status::Clean
        }
    }

    fn verdict(&self) -> String {
        let found = &self.found;
        match (found.bad_regions, found.rebuilt_regions) {
            (0, 0) if self.incomplete => "nothing wrong in the regions that could be checked".to_string(),
            (0, 0) => "clean".to_string(),
            (0, rebuilt) => format!("nothing wrong; {rebuilt} regions rebuilt"),
            (bad, 0) => format!("{bad} regions are wrong"),
            (bad, rebuilt) if self.repaired => format!("{bad} regions were wrong, {rebuilt} rebuilt"),
            (bad, rebuilt) => format!("{bad} regions are or were wrong, {rebuilt} rebuilt"),
        }
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let found = &self.found;
        writeln!(out, "{}: {}", self.kind.title, self.verdict())?;
        if found.failed_regions > 0 {
            writeln!(
                out,
                "note: {} regions failed and are unchanged; see the kernel log",
                found.failed_regions
            )?;
        }
        let witness = self.kind.witness;
        for (is, what) in [
            (
                self.xfail,
                format!("{witness}: some could not be read; regions with their blocks were skipped"),
            ),
            (
                self.xcorrupt,
                format!("{witness}: damaged or contradictory, the affected regions were skipped; see the kernel log, run e2fsck"),
            ),
            (
                self.incomplete,
                "some regions were not checked, or are stale".to_string(),
            ),
            (
                self.preen,
                "blocks of replaced trees have not been freed yet; a repair frees them".to_string(),
            ),
        ] {
            if is {
                writeln!(out, "note: {what}")?;
            }
        }
        let seconds = |ns: u64| ns as f64 / 1e9;
        writeln!(
            out,
            "{} inodes, {} records ({:.0}/s), {} blocks written, {} live updates, {} KiB of memory",
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
                "{} KiB spilled to a tmpfs file",
                found.spilled.div_ceil(1024)
            )?;
        }
        writeln!(
            out,
            "{:.2} s: scan {:.2}, compare {:.2}, rebuild {:.2}, free {:.2}; writers stopped for at most {:.2} ms",
            self.seconds,
            seconds(found.scan_ns),
            seconds(found.check_ns),
            seconds(found.load_ns),
            seconds(found.reap_ns),
            self.stall_ms,
        )?;
        match &self.error {
            Some(error) => writeln!(out, "{}: {error}", self.kind.title),
            None => Ok(()),
        }
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<Status> {
    let volume = Arc::new(ioctl::open_mount(&args.mount)?);
    let (sender, events) = channel();
    let interrupted = sender.clone();
    // Once the ioctl has returned, the event has no receiver, and there is nothing to cancel.
    ctrlc::set_handler(move || drop(interrupted.send(Event::Interrupted)))
        .context("cannot catch interrupts")?;
    let mut reports: Vec<Report> = Vec::new();
    let mut failed = None;
    let once = TYPES.iter().map(|kind| (false, kind));
    for (again, kind) in once.chain(TYPES.iter().map(|kind| (true, kind))) {
        if args.only.is_some_and(|only| only != kind.option) || again && !is_needed_again(kind, &reports) {
            continue;
        }
        let ended = call(&volume, args, kind, &sender, &events)?;
        let began = ended.outcome.is_ok() || ended.found.flags & ioctl::OFLAG_INCOMPLETE != 0;
        if began {
            let report = Report::of(kind, &ended, args);
            match reports
                .iter_mut()
                .find(|earlier| earlier.kind.option == kind.option)
            {
                Some(earlier) => *earlier = report.after(earlier),
                None => reports.push(report),
            }
        }
        if let Err(error) = ended.outcome {
            failed = Some(error);
            // An error that concerns only some regions does not prevent the next type from being
            // checked.
            if !began || matches!(error, Errno::INTR | Errno::CANCELED | Errno::ROFS) {
                break;
            }
        }
    }
    let mut out = stdout().lock();
    if args.json {
        if !reports.is_empty() {
            serde_json::to_writer(&mut out, &object(&reports)?)?;
            writeln!(out)?;
        }
    } else {
        for report in &reports {
            report.print(&mut out)?;
        }
    }
    match failed {
        Some(error) => Err(explain(error)),
        None => Ok(worst(reports.iter().map(Report::status))),
    }
}

/// Returns true if a type that comes before the reverse map is to be checked again: something could
/// not be judged while the reverse map was stale, which it no longer is.
fn is_needed_again(kind: &ScrubType, reports: &[Report]) -> bool {
    let place = |option| reports.iter().position(|report| report.kind.option == option);
    let (Some(at), Some(rmap)) = (place(kind.option), place(Type::Rmap)) else {
        return false;
    };
    let unjudged = reports[at].incomplete && reports[at].error.is_none();
    at < rmap && unjudged && !reports[rmap].incomplete
}

/// Combines all results in one JSON object: the fields of the reverse map's result (or of the first
/// one), and each other result in a field with the name of its type.
fn object(reports: &[Report]) -> Result<serde_json::Value> {
    let rmap = reports.iter().position(|report| report.kind.option == Type::Rmap);
    let main = rmap.unwrap_or(0);
    let mut object = match reports.get(main).map(serde_json::to_value) {
        Some(value) => value?,
        None => serde_json::Map::new().into(),
    };
    for (index, report) in reports.iter().enumerate() {
        if index != main {
            object[report.kind.name] = serde_json::to_value(report)?;
        }
    }
    Ok(object)
}

/// Returns the worst status.
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

/// Issues the ioctl for one type, in a separate thread.
fn call(
    volume: &Arc<File>,
    args: &Args,
    kind: &ScrubType,
    sender: &Sender<Event>,
    events: &Receiver<Event>,
) -> Result<Ended> {
    let mut request = ScrubMetadata {
        kind: kind.number,
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
        // Measure the ioctl, without the creation of the thread.
        let since = Instant::now();
        let outcome = ioctl::scrub_metadata(&*callers, &mut request);
        drop(sender.send(Event::Ended(Ended {
            found: request,
            outcome,
            took: since.elapsed(),
        })));
    });
    wait(volume, events)
}

/// Waits for the ioctl to return, and draws its progress on a terminal.
fn wait(volume: &File, events: &Receiver<Event>) -> Result<Ended> {
    let bar = stderr().is_terminal().then(new_bar);
    let mut cancelled = false;
    let ended = loop {
        match events.recv_timeout(TICK) {
            Ok(Event::Ended(ended)) => break ended,
            Ok(Event::Interrupted) => cancelled = true,
            Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the thread that runs the scrub has died"),
        }
        if cancelled {
            // Repeat at each tick: the first interrupt may arrive before the kernel has started.
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
    // A template error affects only the appearance.
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn draw(bar: &ProgressBar, volume: &File) {
    // Without progress information nothing is drawn; the ioctl itself reports errors.
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
        ", started in the background"
    } else {
        ""
    };
    bar.set_prefix(phase);
    bar.set_length(progress.total);
    bar.set_position(progress.done.min(progress.total));
    bar.set_message(format!("{what}, {} records{whose}", progress.records));
}

/// Describes an error of the ioctl.
fn explain(error: Errno) -> anyhow::Error {
    let what = match error {
        Errno::PERM => "only root may do this",
        Errno::INVAL => "the volume has no such region, or the kernel does not know this kind of check",
        Errno::NOTTY => "not a volume that rext4 has mounted",
        Errno::OPNOTSUPP => "the volume has no reverse map in use",
        Errno::ROFS => "the volume is mounted read-only",
        Errno::BUSY => "another check or repair is running",
        Errno::INTR | Errno::CANCELED => "cancelled; the remaining regions are unchanged",
        Errno::UCLEAN => "the inodes themselves are damaged; run e2fsck",
        _ => "the scrub failed",
    };
    anyhow::Error::new(error).context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(flags: u32, bad: u32, rebuilt: u32) -> Ended {
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
        Ended {
            found,
            outcome: Ok(()),
            took: Duration::from_secs(1),
        }
    }

    fn args(repair: bool) -> Args {
        Args {
            repair,
            force: false,
            only: None,
            memory: None,
            region: None,
            json: false,
            mount: PathBuf::new(),
        }
    }

    fn report(flags: u32, bad: u32, rebuilt: u32, repair: bool) -> Report {
        Report::of(&TYPES[2], &ended(flags, bad, rebuilt), &args(repair))
    }

    #[test]
    fn results_come_with_a_failure() {
        let mut ended = ended(ioctl::OFLAG_CORRUPT | ioctl::OFLAG_INCOMPLETE, 2, 2);
        ended.found.failed_regions = 1;
        ended.outcome = Err(Errno::NOSPC);
        let report = Report::of(&TYPES[2], &ended, &args(true));
        assert!(!report.repaired);
        assert_eq!(report.status(), Status::Corrupt);
        let mut text = Vec::new();
        report.print(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.starts_with("reverse map: 2 regions are or were wrong, 2 rebuilt\nnote: 1 regions failed")
        );
        assert!(text.contains("reverse map: the scrub failed: "), "{text}");
    }

    #[test]
    fn damaged_inodes_are_no_success() {
        let report = report(ioctl::OFLAG_XCORRUPT | ioctl::OFLAG_INCOMPLETE, 0, 3, true);
        assert_eq!(report.status(), Status::Corrupt);
    }

    #[test]
    fn each_type_has_a_field() {
        let reports = [
            Report::of(&TYPES[1], &ended(ioctl::OFLAG_CORRUPT, 1, 1), &args(true)),
            report(0, 0, 0, true),
            Report::of(&TYPES[3], &ended(ioctl::OFLAG_PREEN, 0, 0), &args(true)),
        ];
        let object = object(&reports).unwrap();
        assert_eq!(object["corrupt"], false);
        assert_eq!(object["bitmap"]["repaired"], true);
        assert_eq!(object["preen"], false);
        assert_eq!(object["refcount"]["preen"], true);
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
        assert_eq!(report(ioctl::OFLAG_XFAIL, 0, 1, true).status(), Status::Failed);
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
