//! Where an output may go.
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use weightnorm_checkpoint::{Checkpoint, Error, Rules, Spelling, convert};

use crate::files::{Folder, raw, vocoder, write, write_sharded};

/// Converts to `output`; the input is a file beside it.
fn to(folder: &Folder, output: &Path) -> Result<(), Error> {
    let from = folder.join("from.safetensors");
    write(&from, &vocoder(Spelling::Suffixes, Dtype::F16), &[]);
    let checkpoint = Checkpoint::open(&from)?;
    convert(&checkpoint, output, Spelling::Parametrizations, &Rules::default(), &mut |_| ()).map(drop)
}

#[test]
fn targets_that_are_refused_stay_as_they_are() {
    let folder = Folder::new("targets");
    fs::create_dir(folder.join("folder")).unwrap();
    assert!(matches!(to(&folder, &folder.join("folder")), Err(Error::Occupied { .. })));
    assert!(matches!(to(&folder, &folder.join("missing/x.safetensors")), Err(Error::Io { doing: "creating", .. })));
    assert!(to(&folder, Path::new("/")).is_err());
    assert!(to(&folder, Path::new("")).is_err());
    assert!(to(&folder, &folder.join("folder/..")).is_err());
    assert!(to(&folder, &folder.join("from.safetensors/x")).is_err());
    assert!(matches!(to(&folder, &folder.join("new/")), Err(Error::Occupied { .. })));

    let kept = folder.join("kept.safetensors");
    fs::write(&kept, "kept").unwrap();
    let mut permissions = fs::metadata(&kept).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&kept, permissions).unwrap();
    assert!(matches!(to(&folder, &kept), Err(Error::Occupied { .. })));
    assert_eq!(fs::read(&kept).unwrap(), b"kept");
    assert_eq!(folder.names(), ["folder", "from.safetensors", "kept.safetensors"]);
}

#[cfg(unix)]
#[test]
fn targets_that_are_links_are_replaced() {
    let folder = Folder::new("links");
    let (blob, link) = (folder.join("blob"), folder.join("link.safetensors"));
    fs::write(&blob, "blob").unwrap();
    std::os::unix::fs::symlink(&blob, &link).unwrap();
    to(&folder, &link).unwrap();
    assert_eq!(fs::read(&blob).unwrap(), b"blob");
    assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
    Checkpoint::open(&link).unwrap();
}

/// As long as names may be, and one byte longer, which is refused before any work.
#[cfg(unix)]
#[test]
fn targets_of_the_longest_names() {
    let folder = Folder::new("names");
    let [longest, sharded, too_long] = [("x", 255), ("y", 255), ("x", 256)].map(|(x, n)| folder.join(&x.repeat(n)));
    to(&folder, &longest).unwrap();
    to(&folder, &longest).unwrap();
    Checkpoint::open(&longest).unwrap();
    assert!(matches!(to(&folder, &too_long), Err(Error::Io { doing: "looking at the output", .. })));

    let index = write_sharded(&folder.join("model"), &[("1.safetensors", vocoder(Spelling::Suffixes, Dtype::F16))]);
    let checkpoint = Checkpoint::open(&index).unwrap();
    let to = |output| convert(&checkpoint, output, Spelling::Parametrizations, &Rules::default(), &mut |_| ());
    to(&sharded).unwrap();
    Checkpoint::open(&sharded).unwrap();
    assert!(matches!(to(&too_long), Err(Error::Io { doing: "looking at the output", .. })));
    assert_eq!(folder.names().len(), 4);
}

/// Whoever writes to `/dev/stdout` or a pipe does not want it replaced by a file.
#[cfg(unix)]
#[test]
fn targets_that_are_no_files() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let folder = Folder::new("devices");
    let (pipe, device, inside) = (folder.join("pipe"), folder.join("device"), folder.join("inside"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()));
    symlink("/dev/null", &device).unwrap();
    symlink(".", &inside).unwrap();
    for target in [&pipe, &device, &inside] {
        assert!(matches!(to(&folder, target), Err(Error::Occupied { .. })), "{}", target.display());
    }
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_link(&device).unwrap(), Path::new("/dev/null"));
    assert_eq!(folder.names(), ["device", "from.safetensors", "inside", "pipe"]);
    // A link that leads nowhere is in nobody's way.
    symlink("nowhere", folder.join("dangling")).unwrap();
    to(&folder, &folder.join("dangling")).unwrap();
    Checkpoint::open(&folder.join("dangling")).unwrap();
}

/// A header that the longer names make too long for every reader.
#[test]
fn targets_of_too_long_a_header() {
    let folder = Folder::new("long");
    let (from, output) = (folder.join("from.safetensors"), folder.join("output.safetensors"));
    let entry =
        |half: &str, place: &str| format!(r#""bias_{half}":{{"dtype":"F32","shape":[1],"data_offsets":[{place}]}}"#);
    let tensors = format!("{},{}", entry("g", "0,4"), entry("v", "4,8"));
    let rest = 100_000_000 - tensors.len() - r#"{"__metadata__":{"":""},}"#.len();
    let header = format!(r#"{{"__metadata__":{{"":"{}"}},{tensors}}}"#, "x".repeat(rest));
    fs::write(&from, raw(&header, &[1; 8])).unwrap();
    let to = |spelling| {
        convert(&Checkpoint::open(&from).unwrap(), &output, spelling, &Rules::default(), &mut |_| ()).map(drop)
    };
    assert!(to(Spelling::Parametrizations).unwrap_err().to_string().contains("longer than the limit"));
    assert_eq!(folder.names(), ["from.safetensors"]);
    to(Spelling::Suffixes).unwrap();
    Checkpoint::open(&output).unwrap();
}

#[cfg(unix)]
#[test]
fn targets_keep_their_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("mode");
    let output = folder.join("out.safetensors");
    fs::write(&output, "old").unwrap();
    fs::set_permissions(&output, fs::Permissions::from_mode(0o640)).unwrap();
    to(&folder, &output).unwrap();
    assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o640);
}

/// A folder without write permission, and a file without permission to read. For root there are none: not checked then.
#[cfg(unix)]
#[test]
fn targets_and_sources_without_permission() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("permission");
    let sealed = folder.join("sealed");
    fs::create_dir(&sealed).unwrap();
    fs::set_permissions(&sealed, fs::Permissions::from_mode(0o555)).unwrap();
    let is_root = fs::write(sealed.join("probe"), "").is_ok();
    let written = to(&folder, &sealed.join("out.safetensors"));
    fs::set_permissions(&sealed, fs::Permissions::from_mode(0o755)).unwrap();
    let secret = folder.join("secret.safetensors");
    fs::write(&secret, "").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    if !is_root {
        assert!(matches!(written, Err(Error::Io { doing: "creating", .. })));
        assert!(matches!(Checkpoint::open(&secret), Err(Error::Io { doing: "opening", .. })));
    }
}
