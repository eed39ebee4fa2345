//! Writes every complete WGSL module of the crate into a folder, for other compilers and for readers.
//!
//!     cargo run --example shaders -- OUTDIR
//!
//! `NAME.wgsl` has the parameters of a dispatch as immediates, `NAME.uniform.wgsl` as a uniform buffer.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use weightnorm::internals::modules;

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
        std::fs::write(folder.join(format!("{name}.wgsl")), module.source())?;
        std::fs::write(folder.join(format!("{name}.uniform.wgsl")), module.uniform_source())?;
    }
    Ok(())
}
