// SPDX-License-Identifier: GPL-2.0

//! Generates the manual pages and shell completions of the `rext4` command into a directory.
//!
//! Usage: `cargo run --example pages -- DIRECTORY`. Creates `rext4.8`, a page for each subcommand,
//! and `completions/` with one file for each shell.

use clap::Command;
use clap_complete::{aot::generate_to, Shell};
use clap_mangen::{
    roff::{bold, roman, Roff},
    Man,
};
use std::{
    env,
    error::Error,
    fs::{self, File},
    path::{Path, PathBuf},
};

/// Section of the manual: commands of the administrator.
const SECTION: &str = "8";

/// Exit status and its meaning, as in e2fsck(8).
const STATUS: [(&str, &str); 5] = [
    ("0", "Success; nothing is wrong."),
    ("1", "Something was wrong and has been repaired."),
    ("4", "Something is wrong and has not been repaired."),
    ("8", "Operational error; the operation could not be completed."),
    ("16", "Usage error."),
];

/// Examples by page: a command and what it does.
const EXAMPLES: [(&str, &[(&str, &str)]); 6] = [
    (
        "rext4",
        &[
            (
                "rext4 whatis --path /mnt 123456",
                "Show which files own block 123456 of the volume mounted on /mnt.",
            ),
            (
                "rext4 scrub --repair /mnt",
                "Check the bitmaps and both trees of the volume, and repair what is wrong.",
            ),
        ],
    ),
    (
        "rext4-scrub",
        &[
            (
                "rext4 scrub /mnt",
                "Check the bitmaps and both trees of the volume.",
            ),
            (
                "rext4 scrub --repair --region 3 --type rmap /mnt",
                "Check the reverse map of one region, and rebuild it if it is wrong.",
            ),
        ],
    ),
    (
        "rext4-map",
        &[(
            "rext4 map --json /mnt",
            "List all extents, one JSON object per line.",
        )],
    ),
    (
        "rext4-whatis",
        &[(
            "rext4 whatis --path /mnt 123456",
            "Show the owners of a block, with their path names.",
        )],
    ),
    (
        "rext4-snapshot",
        &[
            (
                "rext4 snapshot --freeze /mnt/data /mnt/data-monday",
                "Copy a directory tree as it is at one point in time.",
            ),
            (
                "rext4 snapshot --discard /mnt/data-monday",
                "Remove what an interrupted run left behind.",
            ),
        ],
    ),
    (
        "rext4-dump",
        &[(
            "rext4 dump --tree refcount disk.img",
            "List the reference counts of an unmounted image.",
        )],
    ),
];

fn tagged<'a>(roff: &mut Roff, entries: impl IntoIterator<Item = (&'a str, &'a str)>) {
    for (tag, text) in entries {
        roff.control("TP", []);
        roff.text([bold(tag)]);
        roff.text([roman(text)]);
    }
}

/// Writes one page: clap's description of the command, followed by additional sections.
fn page(directory: &Path, command: Command, all: &[String]) -> Result<(), Box<dyn Error>> {
    // The examples and the exit status have sections of their own.
    let command = command.after_help(None::<&str>).disable_help_flag(true);
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_string();
    let has_subcommands = command.has_subcommands();
    let man = Man::new(command)
        .title(name.to_uppercase())
        .section(SECTION)
        .source(format!("rext4 {}", env!("CARGO_PKG_VERSION")))
        .manual("System Administration");
    let mut out = File::create(directory.join(format!("{name}.{SECTION}")))?;
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if has_subcommands {
        man.render_subcommands_section(&mut out)?;
    }
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    tagged(&mut roff, STATUS);
    for (_, examples) in EXAMPLES.iter().filter(|(page, _)| *page == name) {
        roff.control("SH", ["EXAMPLES"]);
        tagged(&mut roff, examples.iter().copied());
    }
    roff.control("SH", ["SEE ALSO"]);
    let others = all.iter().filter(|other| **other != name);
    let mut references: Vec<String> = others.map(|other| format!("{other}({SECTION})")).collect();
    references.extend(["rext4(5)", "e2fsck(8)", "ext4(5)"].map(String::from));
    roff.text([roman(references.join(", "))]);
    roff.to_writer(&mut out)?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(env::args_os().nth(1).ok_or("usage: pages DIRECTORY")?);
    let completions = directory.join("completions");
    fs::create_dir_all(&completions)?;
    let mut command = rext4_tools::command().disable_help_subcommand(true);
    command.build();
    let mut pages = vec![command.clone()];
    pages.extend(command.get_subcommands().cloned());
    let names: Vec<String> = pages
        .iter()
        .map(|page| page.get_display_name().unwrap_or(page.get_name()).to_string())
        .collect();
    for one in pages {
        page(&directory, one, &names)?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut rext4_tools::command(), "rext4", &completions)?;
    }
    Ok(())
}
