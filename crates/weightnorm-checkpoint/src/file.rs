//! Files: read at positions, written beside their final name and renamed.
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Error;
use super::at::{buffer, ends, read_at, write_at};
use super::error::failed;
use super::foreign::{self, Sample};
use super::header::{self, Flaw, Header, LENGTH_BYTES, MAX_HEADER};
use super::pytorch::{self, Opened, Views};

/// A file whose tensors are known: their names, types and shapes, and where their bytes lie. It stays open, so what is
/// read is of the same file, whatever becomes of its name; nothing is mapped, so another process that cuts it makes an
/// error and no crash.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    pub path: PathBuf,
    /// That of the file; or the one that it would have as a `.safetensors` file.
    pub header: Header,
    data: Data,
}

/// Where the data behind a header lies.
#[derive(Debug)]
enum Data {
    /// All of it in its order, from that byte on.
    At(u64),
    /// In a file of PyTorch's own: the key of the dictionary that is read, and its tensors.
    PyTorch(String, Views),
}

impl Source {
    /// A `.safetensors` file.
    pub fn open(path: &Path) -> Result<Source, Error> {
        let (file, size) = open(path)?;
        Source::safetensors(file, path, size)
    }

    /// A `.safetensors` file, or one that PyTorch wrote, of which the dictionary of that key is taken.
    pub fn open_any(path: &Path, key: Option<&str>) -> Result<Source, Error> {
        let (file, size) = open(path)?;
        if let Some(Opened { key, header, views }) = pytorch::open(&file, path, size, key)? {
            return Ok(Source { file, path: path.to_owned(), header, data: Data::PyTorch(key, views) });
        }
        let source = Source::safetensors(file, path, size)?;
        match key {
            None => Ok(source),
            Some(key) => {
                let reason = format!("it is a .safetensors file, which has no keys: none can be {key:?}");
                Err(Error::Key { path: path.to_owned(), reason, keys: vec![] })
            }
        }
    }

    fn safetensors(file: File, path: &Path, size: u64) -> Result<Source, Error> {
        let flaw = |Flaw { tensor, reason }: Flaw| match tensor {
            Some(tensor) => Error::Tensor { path: path.to_owned(), tensor, reason },
            None => recognized(&file, path, size).unwrap_or(Error::Header { path: path.to_owned(), reason }),
        };
        if size < LENGTH_BYTES {
            return Err(flaw(Flaw::of_file(format!(
                "it is too short for a header: it has {size} of at least {LENGTH_BYTES} bytes\n\
                 download or copy it again"
            ))));
        }
        let mut first = [0; LENGTH_BYTES as usize];
        read_at(&file, &mut first, 0).map_err(failed("reading", path))?;
        let length = header::header_length(first, size).map_err(flaw)?;
        let mut bytes = buffer(length as usize, path)?;
        read_at(&file, &mut bytes, LENGTH_BYTES).map_err(failed("reading", path))?;
        let data_start = LENGTH_BYTES + length;
        let header = Header::parse(&bytes, size - data_start).map_err(flaw)?;
        Ok(Source { file, path: path.to_owned(), header, data: Data::At(data_start) })
    }

    /// The key of the dictionary that is read, of a file of PyTorch's own.
    pub fn key(&self) -> Option<&str> {
        match &self.data {
            Data::At(_) => None,
            Data::PyTorch(key, _) => Some(key),
        }
    }

    /// Bytes of the data, from `offset` behind the header on.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let result = match &self.data {
            Data::At(start) => read_at(&self.file, bytes, start + offset),
            Data::PyTorch(_, views) => views.read(&self.file, offset, bytes),
        };
        result.map_err(failed("reading", &self.path))
    }
}

/// Opens a file, and tells how long it is.
fn open(path: &Path) -> Result<(File, u64), Error> {
    let no_file = || Err(Error::Header { path: path.to_owned(), reason: "it is not a file".to_owned() });
    // Before it is opened, since that waits for a writer where it is a pipe.
    if !fs::metadata(path).map_err(failed("opening", path))?.is_file() {
        return no_file();
    }
    let file = File::open(path).map_err(failed("opening", path))?;
    let status = file.metadata().map_err(failed("opening", path))?;
    if status.is_file() { Ok((file, status.len())) } else { no_file() }
}

/// What a file is that is not of the format.
fn recognized(file: &File, path: &Path, size: u64) -> Option<Error> {
    let (head, tail) = ends(file, size).ok()?;
    foreign::recognize(&Sample { path, size, head: &head, tail: &tail })
}

/// A path beside `target` that is there only until it is renamed to `target`, or dropped.
///
/// The name is `.weightnorm-PROCESS-COUNT.tmp`: short, so that it fits wherever that of `target` does. A process that
/// is killed leaves it behind, and `target` as it was.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    is_folder: bool,
    renamed: bool,
}

static COUNT: AtomicU64 = AtomicU64::new(0);

impl Temporary {
    /// Makes it with `make`, which fails if it is there.
    fn new<T>(target: &Path, is_folder: bool, make: impl Fn(&Path) -> io::Result<T>) -> Result<(Temporary, T), Error> {
        if target.file_name().is_none() {
            let reason = "an output needs a name of its own";
            return Err(Error::Occupied { path: target.to_owned(), reason });
        }
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!(".weightnorm-{}-{count}.tmp", std::process::id()));
            match make(&path) {
                Ok(made) => return Ok((Temporary { path, is_folder, renamed: false }, made)),
                // Left by a process of the same number that was killed.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    let folder = folder_of(target);
                    let in_folder = format!("in the folder {}: {e}", folder.display());
                    return Err(failed("creating", target)(io::Error::new(e.kind(), in_folder)));
                }
            }
        }
    }

    fn rename(mut self, target: &Path) -> Result<(), Error> {
        fs::rename(&self.path, target).map_err(failed("renaming the finished output to it", target))?;
        self.renamed = true;
        let folder = folder_of(target);
        sync_folder(folder).map_err(failed("syncing the folder, the new output being in place", folder))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed stays: there is nobody to tell, and the output's own name is untouched.
        let _ = match (self.renamed, self.is_folder) {
            (true, _) => Ok(()),
            (false, true) => fs::remove_dir_all(&self.path),
            (false, false) => fs::remove_file(&self.path),
        };
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Makes names in a folder last. On Windows there is no such thing.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

/// A file being written.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    /// As it will be called.
    path: PathBuf,
    data_start: u64,
}

impl Sink {
    /// `like`: what it is to replace. The new one never has wider permissions than that, not even for a moment.
    fn create(path: &Path, like: Option<&fs::Metadata>) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if let Some(like) = like {
            use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
            options.mode(like.permissions().mode() & 0o777);
        }
        options.open(path)
    }

    /// Writes the header.
    fn begin(file: File, path: PathBuf, header: &Header) -> Result<Sink, Error> {
        let bytes = header.to_bytes();
        if bytes.len() as u64 - LENGTH_BYTES > MAX_HEADER {
            let reason = format!("its header would be longer than the limit of {MAX_HEADER} bytes");
            return Err(Error::Header { path, reason });
        }
        write_at(&file, &bytes, 0).map_err(failed("writing", &path))?;
        Ok(Sink { file, path, data_start: bytes.len() as u64 })
    }

    /// Bytes of the data, from `offset` behind the header on.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        write_at(&self.file, bytes, self.data_start + offset).map_err(failed("writing", &self.path))
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(failed("syncing", &self.path))
    }
}

/// Checks, before any work, that a file may take the place of `target`.
pub(super) fn check_file_target(target: &Path) -> Result<(), Error> {
    let occupied = |reason| Err(Error::Occupied { path: target.to_owned(), reason });
    match fs::symlink_metadata(target) {
        Ok(status) if status.is_dir() => occupied("a folder is there"),
        Ok(status) if status.is_file() && status.permissions().readonly() => {
            occupied("a file without write permission is there")
        }
        // To rename something to a device or a pipe, or to a link to one, takes its place.
        Ok(_) if fs::metadata(target).is_ok_and(|status| !status.is_file()) => occupied("what is there is not a file"),
        _ if target.as_os_str().as_encoded_bytes().last().is_some_and(|&b| std::path::is_separator(b.into())) => {
            occupied("that is the name of a folder")
        }
        // A name that is too long, or a file where a folder would have to be.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("looking at the output", target)(error)),
        _ => Ok(()),
    }
}

/// Checks, before any work, that a folder may be made at `target`.
pub(super) fn check_folder_target(target: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(target) {
        Ok(_) => Err(Error::Occupied { path: target.to_owned(), reason: "it is there, and a folder is not replaced" }),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("looking at the output", target)(error)),
        Err(_) => Ok(()),
    }
}

/// Makes the folder of a part, unless it is there.
pub(super) fn make_folder(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match path.is_dir() {
            true => Ok(()),
            false => Err(Error::Occupied { path: path.to_owned(), reason: "what is there is not a folder" }),
        },
        made => made.map_err(failed("creating the folder", path)),
    }
}

/// Whether the file is there, with that header and as long as it says: then it is whole, since it got its name last.
pub(super) fn is_written(path: &Path, header: &Header, data: u64) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("looking at the output", path)(error)),
        Ok(_) => {}
    }
    let expected = header.to_bytes();
    let same = || {
        let (file, size) = open(path)?;
        let mut bytes = buffer(expected.len(), path)?;
        if size != expected.len() as u64 + data {
            return Ok(false);
        }
        read_at(&file, &mut bytes, 0).map_err(failed("reading", path))?;
        Ok::<bool, Error>(bytes == expected)
    };
    let reason = "another file is there than this part is: of other weights, or written by other rules";
    if same()? { Ok(true) } else { Err(Error::Occupied { path: path.to_owned(), reason }) }
}

/// Writes a small file of text likewise, in place of what is there if `replace` says so.
pub(super) fn write_text(target: &Path, text: &str, replace: bool) -> Result<(), Error> {
    if !replace && fs::symlink_metadata(target).is_ok() {
        return Err(Error::Occupied { path: target.to_owned(), reason: "it is there already" });
    }
    check_file_target(target)?;
    let (temporary, file) = Temporary::new(target, false, |path| Sink::create(path, None))?;
    write_at(&file, text.as_bytes(), 0).and_then(|()| file.sync_all()).map_err(failed("writing", target))?;
    drop(file);
    temporary.rename(target)
}

/// Writes one file under a temporary name, syncs it, gives it its name and syncs the folder.
pub(super) fn write_file(
    target: &Path,
    header: &Header,
    write: impl FnOnce(&[Sink]) -> Result<(), Error>,
) -> Result<(), Error> {
    check_file_target(target)?;
    let old = fs::symlink_metadata(target).ok().filter(fs::Metadata::is_file);
    let (temporary, file) = Temporary::new(target, false, |path| Sink::create(path, old.as_ref()))?;
    if let Some(status) = old {
        file.set_permissions(status.permissions()).map_err(failed("setting the permissions", target))?;
    }
    let sink = Sink::begin(file, target.to_owned(), header)?;
    write(std::slice::from_ref(&sink))?;
    sink.sync()?;
    drop(sink);
    temporary.rename(target)
}

/// Writes a new folder of files likewise: `texts` are files that are small.
pub(super) fn write_folder(
    target: &Path,
    files: &[(String, Header)],
    texts: &[(String, String)],
    write: impl FnOnce(&[Sink]) -> Result<(), Error>,
) -> Result<(), Error> {
    check_folder_target(target)?;
    let (temporary, ()) = Temporary::new(target, true, |path| fs::create_dir(path))?;
    let mut sinks = Vec::with_capacity(files.len());
    for (name, header) in files {
        let path = target.join(name);
        let file = Sink::create(&temporary.path.join(name), None).map_err(failed("creating", &path))?;
        sinks.push(Sink::begin(file, path, header)?);
    }
    write(&sinks)?;
    sinks.iter().try_for_each(Sink::sync)?;
    drop(sinks);
    for (name, text) in texts {
        let path = target.join(name);
        let file = Sink::create(&temporary.path.join(name), None).map_err(failed("creating", &path))?;
        write_at(&file, text.as_bytes(), 0).and_then(|()| file.sync_all()).map_err(failed("writing", &path))?;
    }
    sync_folder(&temporary.path).map_err(failed("syncing the folder", target))?;
    check_folder_target(target)?;
    temporary.rename(target)
}
