// Package credential turns credentials into principals. A denial is an answer,
// with a kind of reason and no details; an error means that there is none.
//
// An unknown user, an unknown key and a wrong secret cannot be told apart, by the
// answer or by the time it takes: a key is found by its public id, hashes are
// compared in constant time whether there is one or not, and only then the name.
package credential
