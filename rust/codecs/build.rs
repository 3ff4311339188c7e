//! The version of libjpeg-turbo, which has no function that tells it: from the header that its build installed.

use std::path::{Path, PathBuf};
use std::{env, error::Error, fs};

fn main() -> Result<(), Box<dyn Error>> {
    // Folders, with commas between them; turbojpeg-sys says so.
    let folders = env::var("DEP_TURBOJPEG_INCLUDE")?;
    let header = folders
        .split(',')
        .map(|folder| Path::new(folder).join("jconfig.h"))
        .find(|header| header.exists())
        .unwrap_or_else(|| PathBuf::from("jconfig.h"));
    let text = fs::read_to_string(&header)
        .map_err(|error| format!("{} of libjpeg-turbo: {error}", header.display()))?;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("#define LIBJPEG_TURBO_VERSION "))
        .ok_or("jconfig.h of libjpeg-turbo has no LIBJPEG_TURBO_VERSION")?;
    println!(
        "cargo::rustc-env=STORESCP_LIBJPEG_TURBO_VERSION={}",
        version.trim()
    );
    println!("cargo::rerun-if-changed={}", header.display());
    Ok(())
}
