//! Where an output goes: to its name, or through a file of its own to standard output.
use std::fs::{self, DirBuilder, File};
use std::io::{self, IsTerminal, Write as _};
use std::path::{Path, PathBuf};

use weightnorm_checkpoint::{Checkpoint, Error};

use crate::output::{Failure, Kind};

/// What stands for standard output.
const STDOUT: &str = "-";

/// Where the library writes to.
pub enum Place {
    Named(PathBuf),
    /// A file in a folder of its own, which goes with it.
    Stdout {
        folder: PathBuf,
        file: PathBuf,
    },
}

impl Place {
    pub fn is_stdout(output: &Path) -> bool {
        output == Path::new(STDOUT)
    }

    /// Standard output, if it can take the file that is to be written of that checkpoint.
    pub fn stdout(checkpoint: &Checkpoint, json: bool) -> Result<Place, Failure> {
        if json {
            return Err(Failure::usage("with --json the document goes to standard output: name a file for the output"));
        }
        let refused = |message: &str| Err(Failure { kind: Kind::Output, message: message.to_owned() });
        if checkpoint.is_sharded() {
            return refused("standard output: a sharded checkpoint becomes a folder: name a new one");
        }
        if io::stdout().is_terminal() {
            return refused("standard output is a terminal: send it to a file or a program, or name a file");
        }
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let mut number = 0;
        loop {
            let folder = std::env::temp_dir().join(format!("weightnorm-{}-{number}", std::process::id()));
            match builder.create(&folder) {
                Ok(()) => return Ok(Place::Stdout { file: folder.join("output.safetensors"), folder }),
                // Left by a process of the same number that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(failed(&folder, &error)),
            }
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Place::Named(path) => path,
            Place::Stdout { file, .. } => file,
        }
    }

    pub fn text(&self) -> String {
        match self {
            Place::Named(path) => path.to_string_lossy().into_owned(),
            Place::Stdout { .. } => "standard output".to_owned(),
        }
    }

    /// Once the output is written.
    pub fn finish(&self) -> Result<(), Failure> {
        let Place::Stdout { file: path, .. } = self else { return Ok(()) };
        let mut file = File::open(path).map_err(|error| failed(path, &error))?;
        // Nothing is left of it then, even where the process is killed; not everywhere may it go while it is open.
        let _ = fs::remove_file(path);
        let mut out = io::stdout().lock();
        let copied = io::copy(&mut file, &mut out).and_then(|_| out.flush());
        copied.map_err(|error| Failure { kind: Kind::Output, message: format!("standard output: {error}") })
    }

    /// What went wrong, which may be the file before it was to be sent.
    pub fn failure(&self, error: Error) -> Failure {
        match (self, error) {
            (Place::Stdout { file, .. }, Error::Io { path, source, .. }) if path == *file => failed(file, &source),
            (_, other) => other.into(),
        }
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    let first = "the output is written there first, and TMPDIR names another folder";
    Failure { kind: Kind::Output, message: format!("{}: {error}\n{first}", path.display()) }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Place::Stdout { folder, .. } = self {
            let _ = fs::remove_dir_all(folder);
        }
    }
}
