//! The runner: reads a config, runs it, writes runs/<name>/.
