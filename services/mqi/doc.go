// Package mqi is the command line for administering the MQTT integration: users,
// applications, members and API keys, by AdminService of authorization. It keeps
// nothing: credentials come with each call, from the environment or from files.
package mqi
