// Package policy decides. [Decide] is one pure function from a question, what the
// store knows about it and the rules of the configuration to an answer with a
// reason; nothing else in the service allows or denies anything.
package policy
