use crate::Suite;
pub fn register(_: &mut Suite) {}
