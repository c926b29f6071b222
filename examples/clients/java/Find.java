// Adds an image, then finds things in the collection: java Find localhost:50050 mug.jpg "red mug"
import com.google.protobuf.ByteString;
import io.grpc.ManagedChannelBuilder;
import java.nio.file.Files;
import java.nio.file.Path;
import regionsearch.v1.*;

public class Find {
    public static void main(String[] args) throws Exception {
        var channel = ManagedChannelBuilder.forTarget(args[0]).usePlaintext().build();
        var client = RegionSearchServiceGrpc.newBlockingStub(channel);

        var image = Image.newBuilder().setEncoded(ByteString.copyFrom(Files.readAllBytes(Path.of(args[1]))));
        var added = client.ingestImage(IngestImageRequest.newBuilder().setName(args[1]).setImage(image).build());
        System.out.println(added.getOutcome() + " " + added.getImageId());

        var request = RegionSearchServiceSearchRequest.newBuilder()
            .setQuery(Query.newBuilder().addTexts(args[2])).setLevel(Level.LEVEL_REGION).setPageSize(3).build();
        for (var hit : client.search(request).getHitsList()) {
            var box = hit.getRecord().getBox();
            System.out.printf("%d %.3f %s %.0f %.0f%n", hit.getRank(), hit.getScore(), hit.getImage().getName(),
                box.getXMin(), box.getYMin());
        }
        channel.shutdownNow();
    }
}
