package config

import (
	"errors"
	"fmt"
)

// Under puts the path of a section before every error in err, which may be
// joined, so that the Validate of a section needs not know where it is used:
//
//	errs = append(errs, config.Under("kafka", c.Kafka.Validate()))
//
// turns "brokers: at least one is required" into "kafka.brokers: …". It returns
// nil for nil.
func Under(path string, err error) error {
	if err == nil {
		return nil
	}
	// Only a join itself is taken apart, not what wraps one.
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return fmt.Errorf("%s.%w", path, err)
	}
	var errs []error
	for _, e := range joined.Unwrap() {
		errs = append(errs, Under(path, e))
	}
	return errors.Join(errs...)
}
