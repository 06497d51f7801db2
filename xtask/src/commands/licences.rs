//! May we use every crate that we build with?

use anyhow::{Context, Result, bail};
use serde_json::Value;
use spdx::{Expression, ParseMode};

use crate::checkout::{Checkout, output_of};

/// Licences that ask no more than a notice, or (MPL-2.0) that changes to the crate itself stay open.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC-BY-4.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "OFL-1.1",
    "Ubuntu-font-1.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Fails with the name of every crate whose licence is not among those allowed.
pub fn check(checkout: &Checkout) -> Result<()> {
    let mut cargo = checkout.cargo();
    cargo.args(["metadata", "--format-version=1"]);
    // Crates for other systems would be downloaded just for this.
    if let Some(host) = output_of("rustc", &["-vV"])
        .as_deref()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("host: ")))
    {
        cargo.arg("--filter-platform").arg(host);
    }
    let output = cargo.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")?;
    let refused = refused(&metadata);
    if !refused.is_empty() {
        bail!(
            "licences that are not allowed (the list is in xtask/src/commands/licences.rs):\n  {}",
            refused.join("\n  ")
        );
    }
    Ok(())
}

/// One line for each package that may not be used.
fn refused(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    packages
        .iter()
        .filter_map(|package| {
            let name = format!(
                "{} {}",
                package["name"].as_str()?,
                package["version"].as_str()?
            );
            let Some(licence) = package["license"].as_str() else {
                return Some(format!("{name} names no licence"));
            };
            match Expression::parse_mode(licence, ParseMode::LAX) {
                Err(error) => Some(format!(
                    "{name}: {licence} is no SPDX expression ({})",
                    error.reason
                )),
                Ok(expression) => (!expression
                    .evaluate(|wanted| ALLOWED.contains(&wanted.to_string().as_str())))
                .then(|| format!("{name}: {licence}")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_crate_is_named_when_its_licence_is_missing_or_not_allowed() {
        let metadata = json!({"packages": [
            {"name": "good", "version": "1.0.0", "license": "GPL-3.0-only OR MIT"},
            {"name": "old-style", "version": "1.0.0", "license": "MIT/Apache-2.0"},
            {"name": "llvm", "version": "1.0.0", "license": "Apache-2.0 WITH LLVM-exception"},
            {"name": "both", "version": "1.0.0", "license": "MIT AND Unicode-3.0"},
            {"name": "bad", "version": "2.0.0", "license": "MIT AND GPL-3.0-only"},
            {"name": "none", "version": "3.0.0", "license": null},
            {"name": "odd", "version": "4.0.0", "license": "My own"},
        ]});
        let refused = refused(&metadata);
        assert_eq!(refused.len(), 3, "{refused:?}");
        assert_eq!(refused[0], "bad 2.0.0: MIT AND GPL-3.0-only");
        assert_eq!(refused[1], "none 3.0.0 names no licence");
        assert!(
            refused[2].starts_with("odd 4.0.0: My own is no SPDX expression"),
            "{}",
            refused[2]
        );
    }
}
