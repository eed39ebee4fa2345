//! Writes every complete WGSL module of the crate into a folder, for other compilers and for readers.
//!
//!     cargo run --example shaders -- OUTDIR
//!
//! `NAME.wgsl` has the parameters of a dispatch as immediates, `NAME.uniform.wgsl` as a uniform buffer,
//! `NAME.shared.wgsl` as immediates, with `read_write` for every buffer: what a dispatch takes whose output shares a
//! buffer with its inputs.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use weightnorm::internals::{Shared, modules};

fn main() -> ExitCode {
    let [folder] = &std::env::args_os().skip(1).map(PathBuf::from).collect::<Vec<_>>()[..] else {
        eprintln!("usage: shaders OUTDIR");
        return ExitCode::from(2);
    };
    match write(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shaders: {}: {error}", folder.display());
            ExitCode::from(2)
        }
    }
}

fn write(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for module in modules() {
        let name = module.name();
        let none = Shared::default();
        std::fs::write(folder.join(format!("{name}.wgsl")), module.source(none))?;
        std::fs::write(folder.join(format!("{name}.uniform.wgsl")), module.uniform_source(none))?;
        std::fs::write(folder.join(format!("{name}.shared.wgsl")), module.source(Shared::of(0..15)))?;
    }
    Ok(())
}
