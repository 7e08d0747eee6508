// Package access asks the authorization service who somebody is and what they
// may do, keeps its decisions, and listens for what turns them.
//
// # Invariant
//
// A decision is used only while nothing is known that may have turned it: it is
// dropped when a change that concerns it is seen, and when no watch has been
// heard for 5 s it ends one lifetime (as the service says) after the last
// heartbeat. What cannot be decided is [ErrUnavailable], never a denial.
//
// Ask in this order: [Client.Authenticate], [Client.Watch], [Client.Authorize].
// A change between the first two is not lost: the decision of Authorize is newer
// than the change, or is asked for again.
//
// [Client.Run] owns the watch. Questions start a goroutine each, which ends with
// its deadline at the latest and which Run waits for.
package access
