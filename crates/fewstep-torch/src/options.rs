//! What every check of a config's values ends in.

use std::fmt::Debug;

/// Passes if `ok`; else names the option `key` with a clause that says what was expected and found.
///
/// # Errors
/// Where `ok` is false: the key and the clause.
pub fn expect(
    ok: bool,
    key: &'static str,
    expected: &str,
    found: &dyn Debug,
) -> Result<(), (&'static str, String)> {
    match ok {
        true => Ok(()),
        false => Err((key, format!("expected {expected}, found {found:?}"))),
    }
}
