//! "Did you mean": the valid word nearest to a mistyped one.

/// The candidate that was most likely meant by `word`, or `None` if none is near: a few letters off (normalised
/// Damerau-Levenshtein similarity of at least 0.6), a long common start (Jaro-Winkler of at least 0.85), one inside the
/// other, or the initials (`lr` for `learning_rate`). `-`, `_` and case do not count.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let plain_word = plain(word);
    candidates
        .iter()
        .map(|candidate| (score(&plain_word, candidate), *candidate))
        .filter(|(score, _)| *score > 0.0)
        .fold(
            None,
            |best: Option<(f64, &str)>, (score, candidate)| match best {
                Some((high, _)) if high >= score => best,
                _ => Some((score, candidate)),
            },
        )
        .map(|(_, candidate)| candidate)
}

/// "`a`, `b` and `c`", with `quote` around each word.
pub(super) fn list(words: &[&str], quote: &str) -> String {
    let quoted: Vec<String> = words
        .iter()
        .map(|word| format!("{quote}{word}{quote}"))
        .collect();
    match quoted.as_slice() {
        [] => "none".to_owned(),
        [only] => only.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

fn plain(word: &str) -> String {
    word.chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// 0 if not near, else larger for nearer.
fn score(plain_word: &str, candidate: &str) -> f64 {
    let initials: String = candidate
        .split(['_', '-'])
        .filter_map(|part| part.chars().next())
        .collect();
    let candidate = plain(candidate);
    let edits = strsim::normalized_damerau_levenshtein(plain_word, &candidate);
    let start = strsim::jaro_winkler(plain_word, &candidate);
    let shorter = plain_word.len().min(candidate.len());
    let inside =
        shorter >= 4 && (candidate.contains(plain_word) || plain_word.contains(&candidate));
    let is_initials = plain_word.len() >= 2 && initials == plain_word;
    if edits >= 0.6 || start >= 0.85 || inside || is_initials {
        1.0 + edits + if is_initials { 1.0 } else { 0.0 }
    } else {
        0.0
    }
}
