module mqtt-integration/proto

go 1.26.0
