//! The program under the limits of a shell: on the size of files, and on memory.
use safetensors::Dtype;
use weightnorm_checkpoint::Spelling;

use crate::cli::text;
use crate::files::{Folder, made, vocoder, write};
use crate::program::without_gpu;

/// Runs the program in a shell that sets limits first.
fn limited(limits: &str, arguments: &[&str]) -> std::process::Output {
    let program = without_gpu().get_program().to_owned();
    let script = format!("{limits}; exec \"$@\"");
    std::process::Command::new("sh").args(["-c", &script, "sh"]).arg(program).args(arguments).output().unwrap()
}

/// A limit on the size of files: a signal that ends the process, or an error where that is ignored. The old file stays.
#[test]
fn cli_limit_on_the_size_of_files() {
    use std::os::unix::process::ExitStatusExt;
    let folder = Folder::new("limit");
    let (path, output) = (folder.join("in.safetensors"), folder.join("out.safetensors"));
    let mut tensors = vocoder(Spelling::Suffixes, Dtype::F32);
    tensors.push(made("tile64x64", Dtype::F32, &[1 << 20], 1));
    write(&path, &tensors, &[]);
    std::fs::write(&output, "the old file").unwrap();
    let arguments = ["convert", text(&path), text(&output), "--force", "--spelling", "parametrizations"];
    let ran = limited("trap '' XFSZ; ulimit -f 1024", &arguments);
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.code() == Some(2) && stderr.contains("writing: "), "{stderr}");
    assert_eq!(folder.names(), ["in.safetensors", "out.safetensors"]);

    let ran = limited("ulimit -f 1024", &arguments);
    assert!(ran.status.signal().is_some(), "{ran:?}");
    let names = folder.names();
    assert!(names.len() == 3 && names[0].starts_with(".weightnorm-") && names[0].ends_with("-0.tmp"), "{names:?}");
    assert_eq!(std::fs::read(&output).unwrap(), b"the old file");
}

/// Memory for neither a header nor a window: an error, and the old file stays.
#[test]
fn cli_limit_on_memory() {
    let folder = Folder::new("memory");
    let (long, rows, output) = (folder.join("long.safetensors"), folder.join("rows.safetensors"), folder.join("out"));
    let file = std::fs::File::create(&long).unwrap();
    std::io::Write::write_all(&mut &file, &95_000_000u64.to_le_bytes()).unwrap();
    file.set_len(95_000_008).unwrap();
    let count = 3 << 20;
    write(&rows, &[made("m.bias_g", Dtype::F16, &[count], 1), made("m.bias_v", Dtype::F16, &[count], 2)], &[]);
    std::fs::write(&output, "the old file").unwrap();
    let convert = ["convert", text(&long), text(&output), "--force", "--spelling", "g-v"];
    for arguments in [&["inspect", text(&long)][..], &["inspect", text(&rows)], &convert] {
        let ran = limited("ulimit -v 32768", arguments);
        let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.code() == Some(2) && stderr.contains("reading: out of memory"), "{arguments:?}: {stderr}");
    }
    assert_eq!(std::fs::read(&output).unwrap(), b"the old file");
    assert_eq!(folder.names(), ["long.safetensors", "out", "rows.safetensors"]);
}
