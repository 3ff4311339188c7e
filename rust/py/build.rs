//! The versions of crates that `storescpd --version` names, from the lock file that the build uses.

use std::path::Path;
use std::{env, error::Error, fs};

/// The name of a crate, and of the variable that has its version when this crate is compiled.
const NAMED: [(&str, &str); 2] = [
    ("dicom-core", "STORESCP_DICOM_RS_VERSION"),
    ("jxl", "STORESCP_JXL_RS_VERSION"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let lock = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../Cargo.lock");
    let text = fs::read_to_string(&lock).map_err(|error| format!("{}: {error}", lock.display()))?;
    for (name, variable) in NAMED {
        let version = version_of(name, &text).ok_or_else(|| format!("Cargo.lock has no {name}"))?;
        println!("cargo::rustc-env={variable}={version}");
    }
    println!("cargo::rerun-if-changed={}", lock.display());
    Ok(())
}

/// Cargo writes the version of a package on the line behind its name.
fn version_of<'t>(name: &str, lock: &'t str) -> Option<&'t str> {
    let named = format!("name = \"{name}\"");
    let mut lines = lock.lines().skip_while(|line| *line != named).skip(1);
    lines.next()?.strip_prefix("version = \"")?.strip_suffix('"')
}
