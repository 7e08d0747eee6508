// Package config fills a configuration struct from its defaults, a YAML file
// and the environment, in this order, and prints it again without its secrets.
//
// It is strict: an unknown key, a key twice, a duration without a unit or a
// variable that belongs to no setting is an error. Each error names the place
// (file and line, or the variable) and the YAML path of the setting, and all of
// them are reported, not the first.
//
// The struct's yaml tags are the only description of the settings. A setting at
// the YAML path store.dsn of a service whose prefix is AUTHORIZATION is set by
// the variable AUTHORIZATION_STORE_DSN.
//
// Secrets have the type [Secret]. They come from a variable or from a file of
// their own that a neighbouring setting named *_file points at ([ReadSecret]),
// never from the YAML file, which is for everybody to read.
package config
