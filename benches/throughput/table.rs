//! What was recorded, as a table: the two bounds of each kernel, by its bytes and by its operations, and what it reached.
use std::path::Path;

use crate::problem::Failure;

/// The first line of a CSV of results.
pub const COLUMNS: &str = "date,version,adapter,backend,driver,copy_gb_s,read_gb_s,multiply_add_gflop_s,name,ms,bytes,\
                           operations,gb_s,gflop_s,percent_of_roof,ratio,ratio_low,ratio_high,bytes_ms,operations_ms";

/// Prints the rates among the lines of `file` that are wanted. Of a name that was measured again the last line counts.
pub fn print(file: &Path, wants: impl Fn(&str) -> bool) -> Result<(), Failure> {
    let text = std::fs::read_to_string(file)?;
    let mut lines = text.lines();
    if lines.next() != Some(COLUMNS) {
        return Err(format!("{}: its columns are not those of this version", file.display()).into());
    }
    let place = |column: &str| COLUMNS.split(',').position(|name| name == column).expect("one of the columns");
    let [name, reached, bytes, operations, percent] =
        ["name", "ms", "bytes_ms", "operations_ms", "percent_of_roof"].map(place);
    let mut rows: Vec<Vec<&str>> = vec![];
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let rate = fields.get(bytes).is_some_and(|field| !field.is_empty());
        if !rate || !wants(fields[name]) {
            continue;
        }
        match rows.iter_mut().find(|row| row[name] == fields[name]) {
            Some(row) => *row = fields,
            None => rows.push(fields),
        }
    }
    println!("| kernel | bound by bytes, ms | bound by operations, ms | reached, ms | of the larger bound |");
    println!("|---|---|---|---|---|");
    for row in rows {
        let [bytes, operations, reached] = [bytes, operations, reached].map(|at| row[at].parse::<f64>());
        let (bytes, operations, reached, percent) = (bytes?, operations?, reached?, row[percent].parse::<f64>()?);
        println!("| {} | {bytes:.3} | {operations:.3} | {reached:.3} | {percent:.0} % |", row[name]);
    }
    Ok(())
}
