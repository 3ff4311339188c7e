//! The identity file of a storage root: what tells it from an empty folder on which nothing is mounted.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::layout::OUTBOX;

const NAME: &str = "identity";

fn file_of(root: &Path) -> PathBuf {
    root.join(OUTBOX).join(NAME)
}

/// Fails where a root has no identity file.
///
/// # Errors
/// `NotFound`, or what the file system says.
pub(super) fn expect(root: &Path) -> io::Result<()> {
    if file_of(root).try_exists()? {
        return Ok(());
    }
    let what = if root.try_exists()? {
        "it has no identity file (.outbox/identity)"
    } else {
        "it is not there"
    };
    let text = format!("{what}, and storage.create is false: is its disk mounted?");
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

/// Writes the identity file where there is none: the name of a new file comes last, so that it is whole wherever it is.
///
/// # Errors
/// What the file system says.
pub(super) fn ensure(root: &Path) -> io::Result<()> {
    let file = file_of(root);
    if file.try_exists()? {
        return Ok(());
    }
    let unnamed = file.with_extension("new");
    let mut written = File::create(&unnamed)?;
    writeln!(written, "{}", uuid::Uuid::now_v7())?;
    written.sync_all()?;
    fs::rename(&unnamed, &file)?;
    File::open(root.join(OUTBOX))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_keeps_its_identity_and_an_empty_folder_has_none() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(OUTBOX)).unwrap();
        for absent in [root.path(), &root.path().join("unmounted")] {
            assert_eq!(expect(absent).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        ensure(root.path()).unwrap();
        let first = fs::read_to_string(file_of(root.path())).unwrap();
        assert!(uuid::Uuid::parse_str(first.trim()).is_ok());
        ensure(root.path()).unwrap();
        assert_eq!(fs::read_to_string(file_of(root.path())).unwrap(), first);
        expect(root.path()).unwrap();
    }
}
