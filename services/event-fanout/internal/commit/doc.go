// Package commit takes positions to the consumer groups of sessions.
//
// A [Group] is the group of one session and has no members. What its subscriptions
// acknowledge moves a [Position], which costs two atomic operations; the
// [Scheduler] commits what has moved, once per interval and group. Requests of one
// group follow each other, so that a commit never brings a group back that was
// just deleted.
package commit
