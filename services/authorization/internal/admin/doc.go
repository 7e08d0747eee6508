// Package admin is AdminService on gRPC. Its interceptor signs every caller in
// before a handler runs; handlers check fields, ask package policy whether the
// caller may, and write one line to the audit log per change.
//
// A caller who may not learns nothing about what exists: permission is checked
// before existence.
package admin
