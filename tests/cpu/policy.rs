//! What the repository promises of itself: the crates it is built of, the oldest Rust, where unsafe code stands.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One of these has to be among the alternatives of every licence.
const LICENCES: [&str; 5] = ["MIT", "Apache-2.0", "Zlib", "ISC", "Unicode-3.0"];

/// Crates that are built in more than one version, and why that cannot be helped from here.
const TWICE: [(&str, &str); 5] = [
    ("bitflags", "1: png, for the examples' pictures; 2: wgpu"),
    ("hashbrown", "0.16: gpu-allocator, of wgpu-hal; 0.17: wgpu itself"),
    ("jni-sys", "0.3: of Android, by way of 0.4, its own successor"),
    ("miniz_oxide", "0.8: png, for the examples' pictures; 0.9: flate2"),
    ("syn", "2 and 3: derive macros, in the build alone"),
];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The value of `key = "value"` in a line.
fn quoted<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.split('"').next())
}

/// All that may ever be built, with every feature and for every platform: from crates.io, each in one version.
#[test]
fn policy_crates() {
    let lock = read("Cargo.lock");
    let mut versions = BTreeMap::<&str, Vec<&str>>::new();
    for package in lock.split("[[package]]").skip(1) {
        let name = quoted(package, "name").expect("every package has one");
        versions.entry(name).or_default().push(quoted(package, "version").expect("every package has one"));
        match quoted(package, "source") {
            None => assert!(["weightnorm", "benches", "decode", "train"].contains(&name), "{name} has no source"),
            Some(source) => assert_eq!(source, REGISTRY, "of {name}"),
        }
    }
    assert!(versions.len() > 100, "only {} packages were found", versions.len());
    versions.retain(|_, versions| versions.len() > 1);
    let (found, listed): (BTreeSet<_>, BTreeSet<_>) =
        (versions.keys().copied().collect(), TWICE.map(|(n, _)| n).into());
    assert_eq!(found, listed, "crates in more than one version, and those listed in TWICE: {versions:?}");
}

/// Licences, and the oldest Rust of each crate. For the manifests of other platforms' crates cargo may need the network.
#[test]
#[ignore = "may need the network"]
fn policy_manifests() {
    let arguments = ["metadata", "--format-version", "1", "--all-features", "--locked"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 100, "only {} packages were found", packages.len());
    let ours = version(quoted(&read("Cargo.toml"), "rust-version").expect("rust-version"));
    for package in packages {
        let name = &package["name"];
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} states no licence"));
        assert!(is_allowed(licence), "{name}: {licence}");
        if let Some(rust) = package["rust_version"].as_str() {
            assert!(version(rust) <= ours, "{name} wants Rust {rust}");
        }
    }
}

fn version(text: &str) -> Vec<u32> {
    text.split('.').take(2).map(|part| part.parse().expect("a number")).collect()
}

/// Takes `A OR (B AND C)` as `(A OR B) AND C`, which allows no more.
fn is_allowed(licence: &str) -> bool {
    let plain = licence.replace('/', " OR ").replace(['(', ')'], "");
    plain.split(" AND ").all(|part| part.split(" OR ").any(|name| LICENCES.contains(&name.trim())))
}

#[test]
fn policy_reads_licences() {
    for allowed in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for refused in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND NCSA", "", "MITX"] {
        assert!(!is_allowed(refused), "{refused}");
    }
}

/// The oldest Rust: Cargo.toml says it, README says it to users, CI builds with it.
#[test]
fn policy_oldest_rust() {
    let rust = quoted(&read("Cargo.toml"), "rust-version").expect("rust-version").to_owned();
    assert!(read("README.md").contains(&format!("Rust {rust} or later")), "README.md: Rust {rust} or later");
}

/// Every Rust file of the crate itself.
fn rust_files() -> Vec<PathBuf> {
    let mut files = vec![];
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// Unsafe code of the crate stands in one file, each block below its reason. The lint refuses it everywhere else: what
/// could slip is an attribute that takes the lint back.
#[test]
fn policy_unsafe() {
    assert!(read("Cargo.toml").contains("\nunsafe_code = \"deny\""), "the lint");
    let (word, lint) = (["un", "safe"].concat(), ["unsafe", "_code"].concat());
    let mut lifted = vec![];
    for path in rust_files() {
        let text = std::fs::read_to_string(&path).expect("it was listed");
        let name = path.strip_prefix(root()).expect("it is below").display().to_string();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (i, line) in lines.iter().enumerate() {
            let is_comment = line.starts_with("//");
            if !is_comment && line.contains(&format!("({lint}")) {
                lifted.push(name.clone());
            }
            let opens = !is_comment
                && [" {", " impl", " fn", " extern"].iter().any(|after| line.contains(&(word.clone() + after)));
            if opens {
                let comment = lines[..i].iter().rev().take_while(|line| line.starts_with("//"));
                assert!(
                    comment.into_iter().any(|line| line.contains("SAFETY: ")),
                    "{name}:{}: no SAFETY comment",
                    i + 1
                );
            }
        }
    }
    assert_eq!(lifted, ["src/trusted.rs"], "files of the crate that lift the lint, once each");
}

/// What people read: README in one sitting, no line wider than a screen but in tables and output, and no link to nowhere.
#[test]
fn policy_documents() {
    let documents = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from);
    let folder = std::fs::read_dir(root().join("docs")).expect("docs").map(|entry| entry.expect("an entry").path());
    let more = folder.filter(|path| path.extension().is_some_and(|e| e == "md")).collect::<Vec<_>>();
    assert!(more.len() >= 4, "{more:?}");
    let mut links = 0;
    for path in documents.iter().map(|name| root().join(name)).chain(more) {
        let (name, text) = (path.display(), std::fs::read_to_string(&path).expect("it was listed"));
        let mut in_code = false;
        for (number, line) in (1..).zip(text.lines()) {
            in_code ^= line.starts_with("```");
            let is_output = in_code && line.contains("tiles  ");
            assert!(line.starts_with('|') || is_output || line.chars().count() <= 120, "{name}:{number} is too long");
        }
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            if !target.starts_with("https://") {
                links += 1;
                assert!(path.with_file_name(file).exists(), "{name}: {target} is not there");
                let is_heading = |line: &str| line.starts_with('#') && line.to_lowercase().ends_with(heading);
                assert!(heading.is_empty() || text.lines().any(is_heading), "{name}: {target} is not there");
            }
        }
    }
    assert!(links >= 8, "{links}");
    assert!(read("README.md").lines().count() <= 200, "README.md has more than 200 lines");
}
